"""Three workers, three dimensions: Top-1 without feedback diverges at every step size, and converges with feedback.

    python benchmarks/convergence/three_workers.py --json runs/three.json --plot runs/three.png         # seconds

f_i(x) = <a_i, x>^2 + |x|^2/4 with a_1 = (-3, 2, 2) and its rotations, from x = (1, 1, 1). Each worker sends its own
coordinate, where its gradient is -11/2 and the mean is 7/6: without feedback x grows by exactly 1 + 11 rate/6 a step.

After Beznosikov, Horvath, Richtarik, Safaryan 2020 (arXiv:2002.12410), Example 1.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from common import write
from lanes import Lanes, descend, mean, xi
from torch import Tensor

import compcomm as cc
from compcomm.core.optional import need
from compcomm.report import plots, tables

A = torch.tensor([[-3.0, 2.0, 2.0], [2.0, -3.0, 2.0], [2.0, 2.0, -3.0]], dtype=torch.float64)
TOP1 = cc.TopK(k=1, dense_below=0)
METHODS: dict[str, cc.Reducer] = {
    "no feedback": cc.AllGather(TOP1),
    "EF14": cc.ErrorFeedback(TOP1, dtype=torch.float64),
    "EF21": cc.EF21(TOP1, dtype=torch.float64),
    "uncompressed": cc.Exact(),
}
MULTIPLES = (1, 4)
STEPS, MARKS = 2000, (100, 500, 1000, 2000)
Row = dict[str, Any]


def gradients(x: Tensor) -> Tensor:
    """[3, runs, 3] at x [runs, 3]."""
    return 2 * (x @ A.T).T.unsqueeze(2) * A.unsqueeze(1) + x / 2


def value(x: Tensor) -> Tensor:
    """f, per run."""
    return (x @ A.T).square().mean(1) + x.square().sum(1) / 4


def rate() -> float:
    """EF21's: 1/(L + L_i xi), L = 17 1/6, L_i = 34.5, delta = 1/3."""
    hessians = 2 * A.unsqueeze(2) * A.unsqueeze(1) + 0.5 * torch.eye(3, dtype=torch.float64)
    smooth = float(torch.linalg.eigvalsh(hessians.mean(0))[-1])
    return 1 / (smooth + mean(torch.linalg.eigvalsh(hessians)[:, -1].tolist()) * xi(1 / 3))


def measure(steps: int = STEPS) -> list[Row]:
    rows: list[Row] = []
    for method, reducer in METHODS.items():
        lanes = Lanes(reducer, 3, torch.ones(3), [m * rate() for m in MULTIPLES])
        path = [(t, x) for t, _, x in descend(lanes, gradients, steps)]
        for i, multiple in enumerate(MULTIPLES):
            x = torch.stack([found[i] for _, found in path])
            f = value(x).tolist()
            row: Row = {
                "method": method,
                "reducer": repr(reducer),
                "multiple": multiple,
                "rate": multiple * rate(),
                "f": {str(t): f[t] for t in MARKS if t <= steps},
                "curve": [[t, f[t]] for t in range(0, steps + 1, 10) if f[t] < 1e6],
            }
            if method == "no feedback":
                due = 1 + 11 * row["rate"] / 6
                growth = (x[1:] / x[:-1])[x[1:].abs().amax(1) < 1e100]
                row |= {"growth": float(growth.mean()), "due": due, "error": float((growth / due - 1).abs().max())}
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--json", help="file for the result")
    parser.add_argument("--plot", help="PNG file of the curves")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure()
    note = "; ".join(f"x grows by {r['growth']:.9f} a step (due {r['due']:.9f})" for r in rows if "growth" in r)
    need("rich.console", "three_workers.py").Console().print(
        tables.table(
            f"f(x_t), from f(x_0) = 1.75, gamma = {rate():.6g}",
            ["method", "x gamma", *(f"t={t}" for t in MARKS)],
            ([r["method"], str(r["multiple"]), *(f"{r['f'][str(t)]:.4g}" for t in MARKS)] for r in rows),
            f"Without feedback: {note}.",
        )
    )
    if options.plot:
        panels = {
            f"{m} x gamma": {r["method"]: tuple(zip(*r["curve"], strict=True)) for r in rows if r["multiple"] == m}
            for m in MULTIPLES
        }
        plots.lines(panels, options.plot, "three workers, Top-1", "steps", "f(x)")
    if options.json:
        write(options.json, "three_workers", [{k: v for k, v in r.items() if k != "curve"} for r in rows], rate=rate())


if __name__ == "__main__":
    main()
