"""EControl between error feedback and EF21: least squares between unlike workers, with and without noise.

    python benchmarks/convergence/econtrol.py --json runs/econtrol.json --plot runs/econtrol.png

d = 300, 5 workers, f_i(x) = |A_i x - b_i|^2/2, A_i^2 = (i^2/n) I, b_i normal with variance zeta^2/i^2, gradients with
normal noise of variance sigma^2/d per element, Top-k with k = 30 (delta = 0.1), from x = 0. What counts is
f(x) - f* = mean(i^2/n) |x - x*|^2/2, averaged over the last 200 of 4000 steps.

After Gao, Islamov, Stich 2024 (arXiv:2311.05645), the synthetic experiment.
"""

from __future__ import annotations

import argparse
import sys
from math import inf, isfinite
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from common import write
from lanes import Lanes

import compcomm as cc
from compcomm.core.optional import need
from compcomm.report import plots, tables

WORLD, DIMENSION, STEPS, LAST = 5, 300, 4000, 200
TOP = cc.TopK(k=30, dense_below=0)
METHODS: dict[str, cc.Reducer] = {
    "SGD": cc.Exact(),
    "no feedback": cc.AllGather(TOP),
    "EF14": cc.ErrorFeedback(TOP, dtype=torch.float64),
    "EF21": cc.EF21(TOP, dtype=torch.float64),
    "EF21-SGDM": cc.EF21(TOP, momentum=0.1, dtype=torch.float64),
    **{f"EControl {eta:g}": cc.EControl(TOP, eta=eta, dtype=torch.float64) for eta in (0.1 / 400, 0.018, 0.1, 0.3)},
}


class Setting(NamedTuple):
    zeta: float
    sigma: float
    rate: float


SETTINGS = (
    Setting(100, 0, 0.02),
    Setting(100, 0, 0.002),
    Setting(100, 10, 0.02),
    Setting(100, 10, 0.002),
    Setting(0, 50, 0.002),
)
Row = dict[str, Any]


def measure(method: str, settings: tuple[Setting, ...] = SETTINGS, steps: int = STEPS) -> list[Row]:
    """All settings side by side: a row each."""
    g = torch.Generator().manual_seed(0)
    i = torch.arange(1.0, WORLD + 1, dtype=torch.float64)
    curvature = i.square() / WORLD
    unit = torch.randn(WORLD, 1, DIMENSION, generator=g, dtype=torch.float64) / i.view(-1, 1, 1)
    zeta, sigma = (torch.tensor([s[k] for s in settings], dtype=torch.float64).view(-1, 1) for k in (0, 1))
    pull = curvature.sqrt().view(-1, 1, 1) * unit * zeta
    best = pull.mean(0) / curvature.mean()
    start = torch.zeros(DIMENSION) if bool((zeta > 0).all()) else torch.ones(DIMENSION)
    lanes = Lanes(METHODS[method], WORLD, start, [s.rate for s in settings])
    values: list[list[float]] = []
    for _ in range(steps):
        noise = sigma / DIMENSION**0.5 * torch.randn(WORLD, len(settings), DIMENSION, generator=g, dtype=torch.float64)
        lanes.step(curvature.view(-1, 1, 1) * lanes.x - pull + noise)
        lanes.x = lanes.x.clamp(-1e30, 1e30)  # a run that diverges is not to spoil the others' arithmetic
        values.append((0.5 * curvature.mean() * (lanes.x - best).square().sum(1)).tolist())
    rows: list[Row] = []
    for k, setting in enumerate(settings):
        curve = [v[k] for v in values]
        floor = sum(curve[-LAST:]) / len(curve[-LAST:])
        value = floor if isfinite(floor) and floor < 1e6 else inf
        rows.append({**setting._asdict(), "method": method, "reducer": repr(METHODS[method]), "value": value})
        rows[-1]["curve"] = [[t, curve[t]] for t in range(0, steps, 20)]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--json", help="file for the result")
    parser.add_argument("--plot", help="PNG file of the curves")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    for method in METHODS:
        rows += measure(method)
        print(f"econtrol: {method}", file=sys.stderr, flush=True)
    need("rich.console", "econtrol.py").Console(width=None if sys.stdout.isatty() else 160).print(
        tables.table(
            f"f(x) - f*, mean of the last {LAST} of {STEPS} steps",
            ["zeta, sigma, rate", *METHODS],
            (
                [
                    f"{s.zeta:g}, {s.sigma:g}, {s.rate:g}",
                    *(f"{r['value']:.3g}" for r in rows if (r["zeta"], r["sigma"], r["rate"]) == s),
                ]
                for s in SETTINGS
            ),
        )
    )
    if options.plot:
        panels = {
            f"zeta {s.zeta:g}, sigma {s.sigma:g}, rate {s.rate:g}": {
                r["method"]: tuple(zip(*((t, min(v, 1e6)) for t, v in r["curve"]), strict=True))
                for r in rows
                if (r["zeta"], r["sigma"], r["rate"]) == s
            }
            for s in SETTINGS[:4]
        }
        plots.lines(panels, options.plot, "least squares between unlike workers", "steps", "f(x) - f*")
    if options.json:
        kept = [{k: (v if v != inf else None) for k, v in r.items() if k != "curve"} for r in rows]
        write(options.json, "econtrol", kept, world_size=WORLD, dimension=DIMENSION, steps=STEPS)


if __name__ == "__main__":
    main()
