"""EF21 against error feedback on nonconvex logistic regression: 20 clients, Top-1, constant steps.

    python benchmarks/convergence/logistic.py --data DIR --json runs/logistic.json --plot runs/logistic.png
    python benchmarks/convergence/logistic.py --data DIR --only phishing

``DIR`` holds the LIBSVM files phishing, mushrooms, a9a and w8a. The steps are multiples of EF21's theoretical one,
gamma = 1/(L + L_QM xi), xi = sqrt(1 - delta)/(1 - sqrt(1 - delta)), delta = 1/d; the start is normal, seed 0. What
counts is |grad f|^2 against the bits that a client has sent: value, index and count of Top-1, by the wire format, link
headers and message header apart.

After Richtarik, Sokolov, Fatkhullin 2021 (arXiv:2106.05203), Section 5, who count 32 bits per value and no index.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import libsvm
import numpy as np
import torch
from common import write
from lanes import Lanes, descend, mean, quadratic_mean, xi

import compcomm as cc
from compcomm.core.optional import need
from compcomm.report import plots, tables

CLIENTS = 20
TOP1 = cc.TopK(k=1, dense_below=0)
METHODS: dict[str, cc.Reducer] = {
    "EF21": cc.EF21(TOP1, dtype=torch.float64),
    "EF14": cc.ErrorFeedback(TOP1, dtype=torch.float64),
    "no feedback": cc.AllGather(TOP1),
    "uncompressed": cc.Exact(),
}
MULTIPLES = (1, 8, 64)
STEPS = {"phishing": 3000, "mushrooms": 3000, "a9a": 600, "w8a": 600}
MARKS = (0, 100, 300, 500, 600, 1000, 1500, 2000, 3000)
SHOWN = {"phishing": 8, "mushrooms": 64, "a9a": 64, "w8a": 64}
"""The multiple in the plot."""
EVERY = 10
Row = dict[str, Any]


def measure(name: str, problem: libsvm.Logistic, steps: int, methods: Sequence[str] = tuple(METHODS)) -> list[Row]:
    """A row per method and multiple."""
    d = problem.dimension
    whole, each = problem.constants()
    rate = 1 / (whole + quadratic_mean(each) * xi(1 / d))
    start = torch.from_numpy(np.random.default_rng(0).normal(size=d))
    rows: list[Row] = []
    for method in methods:
        lanes = Lanes(METHODS[method], len(problem.parts), start, [m * rate for m in MULTIPLES])
        looks = [(t, g.tolist()) for t, g, _ in descend(lanes, problem.gradients, steps, EVERY)]
        coded = 32 * d if method == "uncompressed" else 8 * TOP1.section(d)
        for i, multiple in enumerate(MULTIPLES):
            curve = [(t, g[i]) for t, g in looks]
            rows.append(
                {
                    "data": name,
                    "samples": int(problem.features.shape[0]),
                    "dimension": d,
                    "L": whole,
                    "L_AM": mean(each),
                    "L_QM": quadratic_mean(each),
                    "method": method,
                    "reducer": repr(METHODS[method]),
                    "multiple": multiple,
                    "rate": multiple * rate,
                    "bits_per_step": coded,
                    "marks": {str(t): g for t, g in curve if t in MARKS},
                    "least": min(g for _, g in curve),
                    "curve": curve,
                }
            )
        print(f"logistic: {name}, {method}", file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the LIBSVM files")
    parser.add_argument("--only", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--steps", type=int, help="instead of each data set's number")
    parser.add_argument("--json", help="file for the result")
    parser.add_argument("--plot", help="PNG file of the curves")
    options = parser.parse_args()
    torch.set_num_threads(1)
    try:
        problems = {name: libsvm.load(options.data, name, CLIENTS) for name in options.only}
    except libsvm.Missing as error:
        sys.exit(f"logistic.py: {error}")
    rows = [r for name, p in problems.items() for r in measure(name, p, options.steps or STEPS[name])]
    need("rich.console", "logistic.py").Console(width=None if sys.stdout.isatty() else 160).print(summary(rows))
    if options.plot:
        panels: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
        for r in rows:
            if r["multiple"] == SHOWN[r["data"]] and r["method"] != "uncompressed":
                x = [t * r["bits_per_step"] for t, _ in r["curve"]]
                title = f"{r['data']}, {r['multiple']} x gamma"
                panels.setdefault(title, {})[r["method"]] = x, [g for _, g in r["curve"]]
        title = f"nonconvex logistic regression, {CLIENTS} clients, Top-1"
        plots.lines(panels, options.plot, title, "bits sent per client", "|grad f|^2")
    if options.json:
        for r in rows:
            r["curve"] = [[t, float(f"{g:.3e}")] for t, g in r["curve"][::10]]
        write(options.json, "logistic", rows, clients=CLIENTS, regularization=libsvm.LAMBDA)


def summary(rows: Sequence[Row]) -> Any:
    """|grad f|^2 at the marks."""
    shown = [t for t in MARKS if any(str(t) in r["marks"] for r in rows)][1:]
    return tables.table(
        "|grad f|^2 after t steps",
        ["data, method", "x gamma", "bits/step", *(f"t={t}" for t in shown), "least"],
        (
            [
                f"{r['data']}, {r['method']}",
                str(r["multiple"]),
                str(r["bits_per_step"]),
                *(f"{r['marks'][str(t)]:.1e}" if str(t) in r["marks"] else "" for t in shown),
                f"{r['least']:.1e}",
            ]
            for r in rows
        ),
    )


if __name__ == "__main__":
    main()
