"""The tight rate of feedback, at every step, for every contractive compressor of the package.

    python benchmarks/convergence/lyapunov.py --json runs/lyapunov.json --plot runs/lyapunov.png        # a minute

One worker, a quadratic with eigenvalues from mu = 0.1 to L = 1 in a random basis, |y - C(y)|^2 <= eps |y|^2, eps =
1 - delta. With the step 2/(L + mu) (1 - sqrt(eps))/(1 + sqrt(eps)), learning rate inside the memory, in every single
step V falls by the factor rho or more:

    EF14   V = |x - x*|^2 - 2<x - x*, e> + (1 + 1/sqrt(eps))|e|^2
    EF21   V = (1 + sqrt(eps))|grad f|^2 - 2<grad f, h> + |h|^2

with rho = sqrt(eps) + (1 + sqrt(eps))(L - mu) lambda/4 and lambda as in ``tight``.

A compressor that draws keeps its promise on average only. So 256 runs go side by side, and what is shown is the largest
factor of a step on their average, and the largest of a single run among the steps in which what its draws really lost
was within eps.

After the tight analyses of Berg Thomsen, Taylor, Dieuleveut 2025.
"""

from __future__ import annotations

import argparse
import sys
from math import sqrt
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from common import write
from lanes import Lanes
from torch import Tensor

import compcomm as cc
from compcomm.compressors.contractive import contractive
from compcomm.core.optional import need
from compcomm.report import plots, tables
from compcomm.testing.inputs import coding
from tests.contract.cases import COMPRESSORS

MU, SMOOTH, DIMENSION, STEPS, RUNS = 0.1, 1.0, 64, 100, 256
END = 1e-24
"""V relative to the start below which rounding of the fp32 payloads' exponents is all that is left."""
Row = dict[str, Any]


class Rate(NamedTuple):
    step: float
    rho: float


def tight(eps: float, mu: float = MU, smooth: float = SMOOTH) -> Rate:
    """The optimal step, and the factor by which V falls."""
    root = sqrt(eps)
    step = 2 / (smooth + mu) * (1 - root) / (1 + root)
    inner = sqrt((smooth - mu) ** 2 + 16 * smooth * mu * root / (1 + root) ** 2)
    weight = step / (smooth + mu) * ((1 - root) * (smooth - mu) + (1 + root) * inner)
    return Rate(step, root + 0.25 * (1 + root) * (smooth - mu) * weight)


def contractions(d: int = DIMENSION) -> list[cc.Compressor]:
    """Every configuration of the contract tests that is a contraction as it is, or shrunk."""
    found: list[cc.Compressor] = []
    for c in (coding(c) for cases in COMPRESSORS.values() for c in cases):
        try:
            c = contractive(c)
        except ValueError:
            continue
        if (c.delta(d) or 0.0) > 0.0 and c not in found:
            found.append(c)
    return found


def check(c: cc.Compressor, scheme: str, d: int = DIMENSION, steps: int = STEPS, runs: int = RUNS) -> Row:
    """One compressor under "EF14" or "EF21": the largest factor of a step, of single runs and of their mean."""
    eps = max(1 - (c.delta(d) or 0.0), 1e-12)
    rate, root = tight(eps), sqrt(eps)
    g = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64)).Q
    hessian = basis @ torch.diag(torch.linspace(MU, SMOOTH, d, dtype=torch.float64)) @ basis.T
    make = cc.EF21 if scheme == "EF21" else cc.ErrorFeedback
    start = torch.randn(d, generator=g, dtype=torch.float64)
    inside = scheme == "EF14"
    lanes = Lanes(make(cc.AllGather(c), dtype=torch.float64), 1, start, [1.0 if inside else rate.step] * runs)
    memory = torch.zeros_like(lanes.x)
    worst, average, kept, taken, curve = 0.0, 0.0, 0, 0, [1.0]
    before: Tensor | None = None
    for _ in range(steps):
        gradient = lanes.x @ hessian
        lanes.step((rate.step * gradient if inside else gradient).unsqueeze(0))
        new = lanes.residual
        if inside:
            lost, whole = new, memory + rate.step * gradient
            z = lanes.x
            v = z.square().sum(1) - 2 * (z * new).sum(1) + (1 + 1 / root) * new.square().sum(1)
            if before is None:
                before = start.square().sum().expand(runs)
        else:
            lost, whole = gradient - new, gradient - memory
            v = (1 + root) * gradient.square().sum(1) - 2 * (gradient * new).sum(1) + new.square().sum(1)
        size = whole.square().sum(1)
        promised = lost.square().sum(1) <= eps * size * (1 + 1e-9) + 1e-300
        if before is not None:
            factor = v / before
            worst = max(worst, float(torch.where(promised, factor, 0.0).max()))
            average = max(average, float(factor.mean()))
            kept, taken = kept + int(promised.sum()), taken + runs
            curve.append(curve[-1] * float(v.mean() / before.mean()))
        before, memory = v, new
        if curve[-1] < END:
            break
    return {
        "compressor": repr(c),
        "scheme": scheme,
        "delta": 1 - eps,
        "step": rate.step,
        "rho": rate.rho,
        "largest": worst,
        "largest_mean": average,
        "within": kept / max(taken, 1),
        "steps": taken // runs,
        "holds": worst <= rate.rho * (1 + 1e-9) and average <= rate.rho * (1 + 1e-9),
        "curve": curve,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--json", help="file for the result")
    parser.add_argument("--plot", help="PNG file of the curves")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    for c in contractions():
        rows += [check(c, scheme) for scheme in ("EF14", "EF21")]
        print(f"lyapunov: {c!r} {rows[-2]['holds']} {rows[-1]['holds']}", file=sys.stderr, flush=True)
    need("rich.console", "lyapunov.py").Console(width=None if sys.stdout.isatty() else 160).print(
        tables.table(
            f"largest factor of V in a step, d = {DIMENSION}, {RUNS} runs of at most {STEPS} steps",
            ["compressor", "scheme", "delta", "rho", "a run", "the mean", "within eps", "holds"],
            (
                [
                    r["compressor"],
                    r["scheme"],
                    *(f"{r[k]:.4f}" for k in ("delta", "rho", "largest", "largest_mean")),
                    f"{100 * r['within']:.0f} %",
                    "yes" if r["holds"] else "NO",
                ]
                for r in rows
            ),
        )
    )
    if options.plot:
        some = ["TopK(k=37", "SignScale(dense", "QSGD(bits=2, rounding", "Contractive(QSGD(bits=4", "RandK(ratio=0.1,"]
        panels = {
            scheme: {
                r["compressor"]: (range(len(r["curve"])), r["curve"])
                for r in rows
                if r["scheme"] == scheme and r["compressor"].startswith(tuple(some))
            }
            for scheme in ("EF14", "EF21")
        }
        plots.lines(panels, options.plot, "Lyapunov functions of feedback", "steps", "V, mean of the runs")
    if options.json:
        kept = [{k: v for k, v in r.items() if k != "curve"} for r in rows]
        write(options.json, "lyapunov", kept, dimension=DIMENSION, runs=RUNS, mu=MU, smoothness=SMOOTH)


if __name__ == "__main__":
    main()
