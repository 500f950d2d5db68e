"""Training with one setting for all, with L-GreCo, and with its rivals: loss over bytes, several seeds."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from statistics import mean, stdev
from typing import Any

import tasks
import torch
from torch.nn import functional

import compcomm as cc
from compcomm.adaptive import measuring
from compcomm.combine.setting import setting
from compcomm.core import structure
from compcomm.report.metrics import time_to_loss

Row = dict[str, Any]
POINTS = 20


def methods(task: str, every: int) -> dict[str, str]:
    """What is compared, by name: reducers as text. "Same bytes": as the uniform setting, with the least error."""
    one = "TopK(ratio=0.02)" if task == "charlm" else "TopK(ratio=0.01, dense_below=1)"
    tenth, small = one.replace("0.02", "0.1").replace("0.01", "0.1"), ", dense_below=1" if task == "digits" else ""
    bits = f"QSGD(bits=4, rounding='nearest'{small})"
    high = one.partition("=")[2].partition(",")[0].partition(")")[0]
    accordion = f"Accordion(ErrorFeedback({tenth}), high={high}, every={every})"
    layout = cc.Layout.of((n, p.shape) for n, p in tasks.load(task).model(0).named_parameters())
    budget = {text: f"budget={coded(text, layout)}, every={every}" for text in (one, bits, "PowerSGD(4)")}
    return {
        "no compression": "Exact()",
        "top-k, uniform": f"ErrorFeedback({one})",
        "top-k, L-GreCo": f"LGreCo(ErrorFeedback({one}), every={every})",
        "top-k, L-GreCo inside": f"ErrorFeedback(LGreCo({one}, every={every}))",
        "top-k, L-GreCo, same bytes": f"LGreCo(ErrorFeedback({one}), {budget[one]})",
        "top-k, L-GreCo inside, same bytes": f"ErrorFeedback(LGreCo({one}, {budget[one]}))",
        "top-k, global": f"GlobalTopK(ErrorFeedback({one}), every={every})",
        "top-k, LEGACY": f"SizeRule(ErrorFeedback({one}), large={float(high) / 2}, threshold=20000, early=2, "
        f"steps={2 * every})",
        "Accordion": accordion,
        "L-GreCo on Accordion": f"LGreCo({accordion}, every={every})",
        "4 bits, uniform": f"ErrorFeedback({bits})",
        "4 bits, L-GreCo": f"LGreCo(ErrorFeedback({bits}), every={every})",
        "4 bits, L-GreCo, same bytes": f"LGreCo(ErrorFeedback({bits}), {budget[bits]})",
        "PowerSGD 4, uniform": "PowerSGD(4)",
        "PowerSGD 4, L-GreCo": f"LGreCo(PowerSGD(4), every={every})",
        "PowerSGD 4, L-GreCo, same bytes": f"LGreCo(PowerSGD(4), {budget['PowerSGD(4)']})",
    }


def coded(text: str, layout: cc.Layout) -> int:
    """Bytes of the coded parameters in a payload."""
    part = cc.parse(text)
    layers = measuring.layers(s for s in layout.segments if not part.exact(s))
    return int(measuring.sizes(part, layers, (setting("training", part),)).sum())


def run(task: str, steps: int, every: int, world: int, seeds: int, workers: int = 2) -> list[Row]:
    """A row per method: means over the seeds, the loss curve, and the choices of the first seed over time."""
    named = methods(task, every)
    jobs = [(name, text, seed) for seed in range(seeds) for name, text in named.items()]
    one = partial(_train, task, steps, world)
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        found = list(pool.map(one, jobs))
    rows: list[Row] = []
    for name, text in named.items():
        runs = [r for (n, _, _), r in zip(jobs, found, strict=True) if n == name]
        losses = [r["loss"] for r in runs]
        rows.append(
            {
                "name": name,
                "reducer": text,
                "loss": mean(losses),
                "loss_std": stdev(losses) if seeds > 1 else None,
                "losses": losses,
                "bytes_per_step": mean(r["bytes_per_step"] for r in runs),
                "ratio": mean(r["ratio"] for r in runs),
                "curve": [
                    [mean(v) for v in zip(*points, strict=True)]
                    for points in zip(*(r["curve"] for r in runs), strict=True)
                ],
                "choices": runs[0]["choices"],
                "seeds": seeds,
            }
        )
    for row in rows:
        row |= reached(row, next(r for r in rows if r["name"] == yardstick(row["name"])))
    return rows


def yardstick(name: str) -> str:
    """Whose end is to be reached.

    >>> yardstick("top-k, L-GreCo"), yardstick("L-GreCo on Accordion"), yardstick("no compression")
    ('top-k, uniform', 'Accordion', 'no compression')
    """
    if "Accordion" in name:
        return "Accordion"
    return f"{name.partition(',')[0]}, uniform" if "," in name else name


def reached(row: Row, first: Row) -> Row:
    """With how many bytes a run, and the yardstick, come to where that ends, within one deviation of its runs."""
    target = first["loss"] + (first["loss_std"] or 0.0)
    spent, due = (time_to_loss([p[1] for p in r["curve"]], [p[2] for p in r["curve"]], target) for r in (row, first))
    return {
        "yardstick": first["name"],
        "bytes_to_yardstick": spent,
        "fewer_to_yardstick": due / spent if due and spent else None,
    }


def _train(task: str, steps: int, world: int, job: tuple[str, str, int]) -> Row:
    """One run among simulated workers: what they send, and the validation loss at even distances."""
    torch.set_num_threads(1)
    name, text, seed = job
    made = tasks.load(task)
    module = made.model(seed)
    optimizer, schedule = made.optimizer(module)
    simulator = cc.Simulator(cc.parse(text), world, seed=seed)
    layout = cc.Layout.of((n, p.shape) for n, p in module.named_parameters())
    held_out = made.validation(0, 1)
    curve, choices = [[0, 0.0, validate(module, held_out)]], list[Any]()
    for step in range(steps):
        buckets = []
        for rank in range(world):
            module.zero_grad(set_to_none=True)
            x, y = made.batch(seed, step, rank)
            functional.cross_entropy(module(x).flatten(0, -2), y.flatten()).backward()
            flat = torch.cat([p.grad.reshape(-1) for p in module.parameters() if p.grad is not None])
            buckets.append([cc.Bucket(flat, layout)])
        mean_gradient = simulator.step(buckets)[0][0]
        for p, view in zip(module.parameters(), mean_gradient.views().values(), strict=True):
            p.grad = view
        optimizer.step()
        schedule.step()
        if (step + 1) * POINTS // steps > step * POINTS // steps:
            curve.append([step + 1, simulator.sent[0], validate(module, held_out)])
            store = simulator.stores[0]
            chosen = structure.choices(simulator.reducer, store.segments(), store)
            if chosen:
                choices.append([step + 1, chosen])
    dense = 2 * (4 * layout.numel * (world - 1) // world)
    per_step = simulator.sent[0] / steps
    print(f"{task}, seed {seed}: {name:24} loss {curve[-1][2]:.4f}, {dense / per_step:.1f}x fewer bytes", flush=True)
    return {
        "loss": curve[-1][2], "bytes_per_step": per_step, "ratio": dense / per_step, "curve": curve, "choices": choices
    }  # fmt: skip


@torch.no_grad()
def validate(module: torch.nn.Module, batches: list[tasks.Batch]) -> float:
    count = sum(b.y.numel() for b in batches)
    sums = (functional.cross_entropy(module(b.x).flatten(0, -2), b.y.flatten(), reduction="sum") for b in batches)
    return float(sum(sums)) / count
