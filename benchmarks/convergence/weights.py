"""EF21 under unlike smoothness: what the step size of the arithmetic mean, or weights, save over the quadratic mean.

    python benchmarks/convergence/weights.py --json runs/weights.json --plot runs/weights.png     # up to half an hour

Least squares, 20 workers of 60 samples in 50 dimensions, Gaussian features; a tenth of the workers has a Hessian
``ratio`` times as large. Top-1, from x = 0 until |grad f|^2 has fallen by 1e8, looked at every 50 steps. Step sizes:

- quadratic mean: 1/(L + L_QM xi), the first analysis of EF21;
- arithmetic mean: 1/(L + L_AM xi), that of EF21-W, which holds for EF21 too;
- weighted: EF21(weights=smoothness_weights(...)), the same step: the same path, since Top-1 is homogeneous.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from common import write
from lanes import Lanes, mean, quadratic_mean, xi
from torch import Tensor

import compcomm as cc
from compcomm.core.optional import need
from compcomm.report import plots, tables

WORLD, SAMPLES, DIMENSION = 20, 60, 50
RATIOS = (1.0, 10.0, 100.0, 1000.0)
TARGET, EVERY, LIMIT = 1e-8, 50, 100_000
TOP1 = cc.TopK(k=1, dense_below=0)
Row = dict[str, Any]


@dataclass(frozen=True)
class LeastSquares:
    """f_i(x) = |A_i x - b_i|^2/(2 N), A [workers, N, d]."""

    a: Tensor
    b: Tensor

    @classmethod
    def make(cls, ratio: float, world: int = WORLD, samples: int = SAMPLES, d: int = DIMENSION) -> LeastSquares:
        rng = np.random.default_rng(0)
        a = rng.normal(size=(world, samples, d))
        a[: max(1, world // 10)] *= ratio**0.5
        b = a @ rng.normal(size=d) + 0.1 * samples**0.5 * rng.normal(size=(world, samples))
        return cls(torch.from_numpy(a), torch.from_numpy(b))

    @property
    def hessians(self) -> Tensor:
        return self.a.mT @ self.a / self.a.shape[1]

    @property
    def offsets(self) -> Tensor:
        return (self.a.mT @ self.b.unsqueeze(2)).squeeze(2) / self.a.shape[1]

    def constants(self) -> tuple[float, list[float]]:
        """L, and the L_i."""
        whole = cc.smoothness(self.a.flatten(0, 1), "least-squares")
        return whole, [cc.smoothness(a, "least-squares") for a in self.a]

    def rates(self) -> dict[str, float]:
        """The two step sizes for Top-1."""
        whole, each = self.constants()
        factor = xi(1 / self.a.shape[2])
        return {
            "quadratic mean": 1 / (whole + quadratic_mean(each) * factor),
            "arithmetic mean": 1 / (whole + mean(each) * factor),
        }


def race(reducer: cc.Reducer, problems: list[LeastSquares], rates: list[float]) -> list[tuple[int, list[float]]]:
    """For each problem with its step size: steps until |grad f|^2 has fallen to TARGET, and its curve."""
    hessians = torch.stack([p.hessians for p in problems], 1)  # [workers, runs, d, d]
    offsets = torch.stack([p.offsets for p in problems], 1)
    lanes = Lanes(reducer, len(hessians), torch.zeros(hessians.shape[-1]), rates)
    running, steps = list(range(len(rates))), [-1] * len(rates)
    curves: list[list[float]] = [[] for _ in rates]
    for t in range(LIMIT + 1):
        gradients = (hessians @ lanes.x.unsqueeze(2)).squeeze(3) - offsets
        if t % EVERY == 0:
            now = gradients.mean(0).square().sum(1).tolist()
            for run, value in zip(running, now, strict=True):
                curves[run].append(value)
            going = torch.tensor([curves[r][-1] > TARGET * curves[r][0] for r in running])
            for run, goes in zip(running, going.tolist(), strict=True):
                if not goes:
                    steps[run] = t
            if not going.all():
                running = [r for r, goes in zip(running, going.tolist(), strict=True) if goes]
                if not running:
                    break
                lanes.keep(going)
                gradients, hessians, offsets = gradients[:, going], hessians[:, going], offsets[:, going]
        lanes.step(gradients)
    return list(zip(steps, curves, strict=True))


def weighted(ratio: float) -> tuple[int, list[float]]:
    """EF21-W on the problem of that ratio."""
    problem = LeastSquares.make(ratio)
    weights = cc.smoothness_weights(problem.a, "least-squares")
    scheme = cc.EF21(TOP1, weights=weights, dtype=torch.float64)
    return race(scheme, [problem], [problem.rates()["arithmetic mean"]])[0]


def unweighted(ratios: Sequence[float]) -> list[tuple[int, list[float]]]:
    """EF21 with both step sizes on all problems, side by side."""
    problems = [LeastSquares.make(ratio) for ratio in ratios]
    rates = [list(p.rates().values()) for p in problems]
    return race(
        cc.EF21(TOP1, dtype=torch.float64), [p for p in problems for _ in rates[0]], [r for two in rates for r in two]
    )


def measure(ratios: Sequence[float], jobs: int = 1) -> list[Row]:
    with ProcessPoolExecutor(jobs, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        plain = pool.submit(unweighted, ratios)
        heavy = [pool.submit(weighted, ratio) for ratio in ratios]
        found = iter(plain.result())
        return [row(ratio, next(found), next(found), job.result()) for ratio, job in zip(ratios, heavy, strict=True)]


def row(ratio: float, *runs: tuple[int, list[float]]) -> Row:
    problem = LeastSquares.make(ratio)
    whole, each = problem.constants()
    rates = problem.rates()
    names = (*rates, "weighted")
    return {
        "ratio": ratio,
        "L": whole,
        "L_AM": mean(each),
        "L_QM": quadratic_mean(each),
        "rates": rates,
        "rate_ratio": rates["arithmetic mean"] / rates["quadratic mean"],
        "steps": {name: steps for name, (steps, _) in zip(names, runs, strict=True)},
        "fewer": runs[0][0] / runs[1][0],
        "curves": {name: curve for name, (_, curve) in zip(names, runs, strict=True)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--ratios", type=float, nargs="+", default=list(RATIOS))
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--json", help="file for the result")
    parser.add_argument("--plot", help="PNG file of the curves")
    options = parser.parse_args()
    rows = measure(options.ratios, options.jobs)
    console = need("rich.console", "weights.py").Console()
    names = list(rows[0]["steps"])
    console.print(
        tables.table(
            "EF21, Top-1, 20 workers: steps until |grad f|^2 has fallen by 1e8",
            ["ratio", "L", "L_AM", "L_QM", "larger step", *names, "fewer steps"],
            (
                [
                    f"{r['ratio']:g}",
                    *(f"{r[k]:.4g}" for k in ("L", "L_AM", "L_QM", "rate_ratio")),
                    *(str(r["steps"][n]) for n in names),
                    f"{r['fewer']:.3g}",
                ]
                for r in rows
            ),
        )
    )
    if options.plot:
        panels = {
            f"Hessians 1 : {r['ratio']:g}": {
                name: ([EVERY * i for i in range(len(curve))], curve) for name, curve in r["curves"].items()
            }
            for r in rows
        }
        plots.lines(panels, options.plot, "EF21 under unlike smoothness: three step sizes", "steps", "|grad f|^2")
    if options.json:
        for r in rows:  # the plot has them all; the file needs no more than a reader
            r["curves"] = {n: [float(f"{v:.3e}") for v in c[:: max(1, len(c) // 50)]] for n, c in r["curves"].items()}
        write(options.json, "weights", rows, target=TARGET, every=EVERY, world_size=WORLD, dimension=DIMENSION)


if __name__ == "__main__":
    main()
