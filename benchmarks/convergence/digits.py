"""Handwritten digits, a small MLP, four workers in the simulator: test accuracy against bytes, over several seeds.

    python benchmarks/convergence/digits.py --json digits.json --plot digits.png

Every method has the same step size, momentum (the reducer's own, or the optimizer's), batches and steps. Ratios are
those of what a worker hands in, fp32 gradient over message, with indices, headers and what travels exact, averaged over
all steps with the warm-up of sparsity in it.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from common import write
from tasks.digits import Digits
from torch import Tensor
from torch.func import grad, vmap
from torch.nn import functional

import compcomm as cc
from compcomm.core.optional import need
from compcomm.report import plots
from compcomm.transports.dry_run import plan

Row = dict[str, Any]
SHAPES = (("w1", (128, 64)), ("b1", (128,)), ("w2", (64, 128)), ("b2", (64,)), ("w3", (10, 64)), ("b3", (10,)))
LAYOUT = cc.Layout.of(SHAPES)
WORKERS, BATCH, RATE, MOMENTUM = 4, 16, 0.05, 0.9


@dataclass
class Method:
    """A reducer, the optimizer beside it, and the ratio that is due."""

    name: str
    reducer: str
    momentum: float = MOMENTUM
    due: float = 1.0
    rate: float = RATE


def methods(warmup: int) -> list[Method]:
    """The first one is what the others are compared with."""
    one, tenth = "TopK(ratio=0.01, dense_below=1)", "TopK(ratio=0.001, dense_below=1)"
    return [
        Method("momentum SGD", "Exact()"),
        Method("DGC 1 %", f"DGC({one}, warmup={warmup})", 0.0, 15.9),
        Method("DGC 0.1 %", f"DGC({tenth}, warmup={warmup})", 0.0, 37.0),
        Method("DGC 1 %, no masking", f"DGC({one}, masking=False, warmup={warmup})", 0.0, 15.9),
        Method("PowerSGD rank 1", "PowerSGD(1)", due=26.0),
        Method("PowerSGD rank 2", "PowerSGD(2)", due=15.4),
        Method("error feedback 1 %", f"ErrorFeedback({one})"),
        Method("error feedback 0.1 %", f"ErrorFeedback({tenth})"),
        Method("EF21 1 %", f"EF21({one})"),
        # Its momentum averages, where that of the others adds up: ten times the rate is the same step.
        Method("EF21-SGDM 1 %", f"EF21({one}, momentum={1 - MOMENTUM:.1f})", 0.0, rate=RATE / (1 - MOMENTUM)),
    ]


def logits(parameters: Tensor, x: Tensor) -> Tensor:
    """The network 64-128-64-10 whose parameters lie in one vector."""
    w1, b1, w2, b2, w3, b3 = (parameters[s.start : s.stop].view(s.shape) for s in LAYOUT.segments)
    h = functional.relu(functional.linear(x, w1, b1))
    return functional.linear(functional.relu(functional.linear(h, w2, b2)), w3, b3)


def loss(parameters: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(logits(parameters, x), y)


def fresh(seed: int) -> Tensor:
    """Weights and biases as torch.nn.Linear draws them."""
    g = torch.Generator().manual_seed(seed)
    width, parts = 0, list[Tensor]()
    for s in LAYOUT.segments:
        width = s.shape[-1] if len(s.shape) == 2 else width  # a bias follows its weight
        parts.append((2 * torch.rand(s.numel, generator=g) - 1) / sqrt(width))
    return torch.cat(parts)


def run(data: Digits, method: Method, seed: int, steps: int) -> tuple[float, float]:
    """Test accuracy and training loss in the end."""
    simulator = cc.Simulator(cc.parse(method.reducer), WORKERS, seed=seed)
    parameters = torch.nn.Parameter(fresh(seed))
    optimizer = torch.optim.SGD([parameters], method.rate, method.momentum)
    gradients = vmap(grad(loss), in_dims=(None, 0, 0))
    draw = torch.Generator().manual_seed(1000 + seed)
    outs = [[cc.Bucket(torch.empty(LAYOUT.numel), LAYOUT)] for _ in range(WORKERS)]
    train, test = data.train, data.held_out
    for _ in range(steps):
        chosen = torch.randint(len(train.x), (WORKERS, BATCH), generator=draw)
        given = gradients(parameters.detach(), train.x[chosen], train.y[chosen])
        simulator.step([[cc.Bucket(g, LAYOUT)] for g in given], outs)
        parameters.grad = outs[0][0].flat
        optimizer.step()
    with torch.no_grad():
        right = (logits(parameters, test.x).argmax(1) == test.y).float().mean()
        return float(right), float(loss(parameters, train.x, train.y))


def message(reducer: cc.Reducer, steps: int) -> float:
    """Bytes that a worker hands in per step, on average: what it sends where there is one other."""
    settled = cc.settle(reducer, 2)
    return sum(sum(p.sent for p in plan(settled, LAYOUT, 2, 0, t)) for t in range(steps)) / steps


def compare(chosen: list[Method], seeds: int, steps: int) -> list[Row]:
    """One row per method; the first is what the others' accuracy is held against."""
    data, rows = Digits(), list[Row]()
    for method in chosen:
        accuracies, losses = zip(*(run(data, method, seed, steps) for seed in range(seeds)), strict=True)
        sent = message(cc.parse(method.reducer), steps)
        row = {
            "method": method.name,
            "reducer": method.reducer,
            "momentum": method.momentum,
            "rate": method.rate,
            "seeds": seeds,
            "steps": steps,
            "accuracies": accuracies,
            "accuracy": mean(accuracies),
            "accuracy_std": stdev(accuracies) if seeds > 1 else 0.0,
            "train_loss": mean(losses),
            "bytes_per_step": sent,
            "ratio": 4 * LAYOUT.numel / sent,
            "ratio_due": method.due,
        }
        row["behind"] = (rows[0]["accuracy"] if rows else row["accuracy"]) - row["accuracy"]
        rows.append(row)
        print(
            f"{method.name:22} accuracy {row['accuracy']:.4f} +- {row['accuracy_std']:.4f}, training loss "
            f"{row['train_loss']:.2e}, {row['ratio']:5.1f}x fewer bytes",
            flush=True,
        )
    return rows


def draw(rows: list[Row], path: Path) -> None:
    """Accuracy, with its standard deviation, against the ratio of bytes."""
    need("matplotlib", "digits.py").use("Agg")
    figure, axes = need("matplotlib.pyplot", "digits.py").subplots(figsize=(8, 5), layout="constrained")
    band = rows[0]["accuracy"] - rows[0]["accuracy_std"], rows[0]["accuracy"] + rows[0]["accuracy_std"]
    axes.axhspan(*band, color="#888888", alpha=0.2, linewidth=0)
    for i, row in enumerate(rows):
        style = {"color": plots.COLOURS[i % len(plots.COLOURS)], "marker": "os^D"[i // len(plots.COLOURS)]}
        axes.errorbar(row["ratio"], row["accuracy"], row["accuracy_std"], capsize=3, label=row["method"], **style)
    axes.set_xscale("log")
    axes.set_xlabel("fewer bytes than fp32, indices and headers counted")
    axes.set_ylabel("test accuracy")
    axes.set_title(f"digits, {WORKERS} workers, {rows[0]['steps']} steps, {rows[0]['seeds']} seeds")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=110, help="steps of DGC's rising sparsity")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = compare(methods(options.warmup), options.seeds, options.steps)
    if options.json:
        write(options.json, "convergence-digits", rows, data=Digits().data, workers=WORKERS)
        print(f"written: {options.json}")
    if options.plot:
        draw(rows, options.plot)
        print(f"written: {options.plot}")


if __name__ == "__main__":
    main()
