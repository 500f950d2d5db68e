"""A character transformer without biases at 0.1 % density: DGC, error feedback, and momentum SGD; loss and bytes.

    launch/netlab --hosts 2 --rate 1gbit -- python benchmarks/convergence/charlm.py --data tinyshakespeare.txt
    torchrun --nproc-per-node 2 benchmarks/convergence/charlm.py --steps 300

The model and the text are those of `tasks/charlm.py`, less all biases. Every method is tuned alike: `--rates`, each for
`--tune` steps, and the rate with the lowest validation loss then trains for `--steps`; the rate rises from zero in 20
steps. (At 0.3 momentum SGD and error feedback diverge, and DGC is worse than at 0.1.) Bytes are counted twice: by a dry
run (payloads with indices and headers, after the warm-up of sparsity; for all parameters, and for those alone that are
compressed) and by the network card (with TCP's headers and acknowledgements).
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from common import write
from loop import Budget, train
from ranks import Ranks, lab, link, ranks
from tasks import text
from tasks.charlm import WARMUP, CharLM
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

import compcomm as cc
from compcomm.core.optional import need
from compcomm.report import plots

Row = dict[str, Any]
MOMENTUM = 0.9


@dataclass
class Method:
    """A reducer and the momentum of the optimizer beside it."""

    name: str
    reducer: str
    momentum: float


def methods(density: float, warmup: int) -> list[Method]:
    """The first one is what the others are compared with."""
    topk = f"TopK(ratio={density})"
    return [
        Method("momentum SGD", "Exact()", MOMENTUM),
        Method("DGC", f"DGC({topk}, momentum={MOMENTUM}, warmup={warmup})", 0.0),
        Method("error feedback", f"ErrorFeedback({topk})", MOMENTUM),
    ]


class Unbiased(CharLM):
    """The task without biases, and SGD in place of AdamW."""

    rate, momentum = 0.1, 0.0

    def model(self, seed: int) -> nn.Module:
        model = super().model(seed)
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.LayerNorm):
                module.register_parameter("bias", None)
        return model

    def optimizer(self, model: nn.Module) -> tuple[torch.optim.Optimizer, LRScheduler]:
        optimizer = torch.optim.SGD(model.parameters(), self.rate, self.momentum, fused=True)
        return optimizer, LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARMUP))


def main() -> None:
    options = arguments()
    with ranks() as here:
        task = Unbiased(
            text.Text(options.data.read_text(encoding="utf-8"), options.data.name) if options.data else None
        )
        shapes = [(n, p.shape) for n, p in task.model(0).named_parameters()]
        if here.first:
            numel = sum(p.numel() for _, p in task.model(0).named_parameters())
            print(f"{numel:,} parameters, {task.data}; {here.world} workers, {link()}", flush=True)
        rows = [run(task, method, here, options, shapes) for method in methods(options.density, options.warmup)]
        for row in rows:
            row["gap"] = row["loss"] - rows[0]["loss"]
        if here.first:
            report(rows, options, task.data)


def run(task: Unbiased, method: Method, here: Ranks, options: argparse.Namespace, shapes: list[Any]) -> Row:
    """One method: the rates for a short time, then the best of them for the whole."""
    reducer, task.momentum = cc.parse(method.reducer), method.momentum
    tried: dict[str, float] = {}
    for task.rate in options.rates if len(options.rates) > 1 else ():
        tried[str(task.rate)] = train(task, reducer, Budget(steps=options.tune), here, _quiet, seed=1)["loss"]
        if here.first:
            print(f"  {method.name} at rate {task.rate:g}: {tried[str(task.rate)]:.3f}", flush=True)
    finite = [rate for rate in options.rates if isfinite(tried.get(str(rate), 0.0))]
    task.rate = min(finite or options.rates, key=lambda rate: tried.get(str(rate), 0.0))
    row = train(task, reducer, Budget(steps=options.steps), here, _quiet, seed=options.seed)
    found: Row = {"method": method.name, "momentum": method.momentum, "rate": task.rate, "tried": tried, **row}
    found |= counted(reducer, shapes, here.world) | on_the_card(row["curve"], options.warmup, shapes, here.world)
    if here.first:
        coded = f", {found['coded_ratio']:.0f}x in what is compressed" if found["coded_ratio"] else ""
        print(
            f"{method.name}, rate {task.rate:g}: loss {row['loss']:.4f}; {found['ratio']:.0f}x fewer bytes{coded}, "
            f"{found['card_ratio']:.0f}x on the card; {row['seconds']:.0f} s",
            flush=True,
        )
    return found


def counted(reducer: cc.Reducer, shapes: list[Any], world: int) -> Row:
    """Bytes per step after the warm-up, by a dry run: of all parameters, and of those that are coded."""
    everything, settled = cc.Layout.of(shapes), cc.settle(reducer, world)
    inner = getattr(settled, "reducer", settled)
    coded = cc.Layout.of((s.name, s.shape) for s in everything.segments if not inner.exact(s))
    whole, part = cc.cost(settled, everything, world), cc.cost(settled, coded, world)
    ratio = part.ratio if coded.segments else None
    return {"sent": whole.sent, "ratio": whole.ratio, "coded_sent": part.sent, "coded_ratio": ratio}


def on_the_card(curve: list[list[float]], warmup: int, shapes: list[Any], world: int) -> Row:
    """What the card counted per step from the first validation after the warm-up on."""
    first = next((p for p in curve if p[2] >= warmup and p[2] < curve[-1][2]), curve[0])
    sent = (curve[-1][1] - first[1]) / (curve[-1][2] - first[2])
    dense = 2 * (4 * sum(shape.numel() for _, shape in shapes) * (world - 1) // world)
    return {"card_bytes": sent, "card_ratio": dense / sent if sent else 0.0}


def _quiet(share: float, seconds: float, loss: float) -> None:
    pass


def report(rows: list[Row], options: argparse.Namespace, data: str) -> None:
    if options.json:
        write(
            options.json, "convergence-charlm", rows, data=data, link=link(), lab=lab(), seed=options.seed,
            density=options.density, warmup=options.warmup, tune=options.tune, rates=options.rates,
        )  # fmt: skip
        print(f"written: {options.json}", flush=True)
    if options.plot:
        draw(rows, options.plot)
        print(f"written: {options.plot}", flush=True)


def draw(rows: list[Row], path: Path) -> None:
    """Validation loss against steps."""
    need("matplotlib", "charlm.py").use("Agg")
    figure, axes = need("matplotlib.pyplot", "charlm.py").subplots(figsize=(8, 5), layout="constrained")
    for row, colour in zip(rows, plots.COLOURS, strict=False):
        label = f"{row['method']}, {row['ratio']:.0f}x: {row['loss']:.3f}" if row["ratio"] > 1 else row["method"]
        points = row["curve"][1:]
        axes.plot([p[2] for p in points], [p[3] for p in points], color=colour, linewidth=2, label=label)
    axes.set_xlabel("steps")
    axes.set_ylabel("validation loss")
    axes.set_title("character transformer without biases, 2 workers")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--data", type=Path, help="a text file (default: that of tasks/text.py)")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--density", type=float, default=0.001)
    parser.add_argument("--warmup", type=int, default=60, help="steps of DGC's rising sparsity")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.03, 0.1], help="learning rates to choose from")
    parser.add_argument("--tune", type=int, default=100, help="steps of each trial")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
