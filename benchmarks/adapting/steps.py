"""Steps of real processes: with telemetry and without, and under Auto against no hook; in turns, to share the noise."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

import tasks
import torch
import torch.distributed as dist
from common import write
from ranks import Ranks, lab, link, ranks
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import compcomm as cc
from compcomm.adaptive.telemetry import Telemetry
from compcomm.plan.shapes import resnet50
from compcomm.report.metrics import timing

PLAIN = "ErrorFeedback(TopK(ratio=0.01))"
WAIT = 0.25
"""Seconds that ResNet-50's shapes wait in place of computation."""
DECIDED = 32
"""Steps after which ``Auto()`` has picked and tested its pick: twice 14, and a few."""
Step = Callable[[int], None]


class Pinned(cc.LGreCo):
    """L-GreCo that measures and decides as ever, and then stays with the uniform setting: so bytes are the same."""

    def decide(self, t: Telemetry) -> Sequence[float]:
        super().decide(t)
        return [t.settings[i] for i in t.reference]


class Shapes(nn.Module):
    """sum_i <p_i, c>: ResNet-50's gradients for one pass over memory, and a wait in the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.zeros(shape) for _, shape in resnet50())

    def forward(self, scale: Tensor) -> Tensor:
        time.sleep(WAIT)
        return torch.stack([p.sum() for p in self.weights]).sum() * scale


def main(options: argparse.Namespace) -> None:
    with ranks() as here:
        rows = cost(here, options) if options.experiment == "cost" else auto(here, options)
        if here.first:
            for row in rows:
                print(row, flush=True)
            if options.json:
                write(options.json, f"adaptive {options.experiment}", rows, model=options.model, link=link(), lab=lab())


def cost(here: Ranks, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Steps without and with telemetry in turns, and those of a second model without: what noise alone would say.

    A period has three kinds of steps: those whose gradients are gathered, those beside which is measured and decided,
    and all others. The first and the last take turns step by step. The second run in a row, so that what works beside
    them slows no other contestant. Of each kind the median difference counts, as often as a period has such steps.
    """
    every = options.every
    pinned = Pinned(cc.TopK(ratio=0.01), every=every)
    reducers = {"without": cc.parse(PLAIN), "again": cc.parse(PLAIN), "with": cc.ErrorFeedback(pinned)}
    made = {name: contestant(options.model, reducer, here.rank) for name, reducer in reducers.items()}
    total, beside = every * (1 + max(2, options.steps // every)), 2 * pinned.lag
    spent: dict[str, list[float]] = {name: [] for name in made}
    for first, last in blocks(total, every, beside):
        for name, (go, _) in made.items():
            dist.barrier()
            for step in range(first, last):
                since = time.perf_counter()
                go(step)
                spent[name].append(time.perf_counter() - since)
    slowest = {name: here.slowest(seconds) for name, seconds in spent.items()}
    found = {name: seconds[every:] for name, seconds in slowest.items()}  # the first period is not yet like the others
    places = range(len(found["with"]))
    kinds = {
        "gathering": [i for i in places if i % every >= every - pinned.gathers],
        "beside": [i for i in places if i % every < beside],
        "other": [i for i in places if beside <= i % every < every - pinned.gathers],
    }
    usual = median(found["without"])
    row: dict[str, Any] = {"world_size": here.world, "every": every, "periods": len(places) // every, "seconds": usual}
    for name in ("with", "again"):
        differences = [b - a for a, b in zip(found["without"], found[name], strict=True)]
        more = {kind: median(differences[i] for i in chosen) for kind, chosen in kinds.items() if chosen}
        row[f"more_{name}"] = more
        row[f"share_{name}"] = sum(len(kinds[k]) * more[k] for k in more) / len(places) / usual
    for name, seconds in found.items():
        longest = [max(seconds[i : i + beside], default=0.0) for i in places[::every]]
        row[f"longest_beside_{name}"] = median(longest) / usual
    counters = made["with"][1].counters()
    return [{**row, "review_seconds_per_step": counters.review_seconds / counters.step}]


def blocks(total: int, every: int, beside: int) -> Iterator[tuple[int, int]]:
    """What a contestant runs in a row: single steps, and the first ``beside`` of a period.

    >>> list(blocks(8, 4, 2))
    [(0, 2), (2, 3), (3, 4), (4, 6), (6, 7), (7, 8)]
    """
    for start in range(0, total, every):
        yield start, start + beside
        yield from ((step, step + 1) for step in range(start + beside, start + every))


def auto(here: Ranks, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Steps after Auto's pick and its test, against DDP without a hook, step by step in turns."""
    plain, _ = contestant(options.model, None, here.rank)
    own, attachment = contestant(options.model, cc.Auto(), here.rank)
    for go in (plain, own):  # each alone, since Auto measures its own steps: it picks, and puts the pick to the test
        for step in range(DECIDED):
            go(step)
    spent: dict[str, list[float]] = {"no hook": [], "Auto": []}
    for step in range(DECIDED, DECIDED + options.steps):
        for name, go in (("no hook", plain), ("Auto", own)):
            dist.barrier()
            since = time.perf_counter()
            go(step)
            spent[name].append(time.perf_counter() - since)
    found = {name: here.slowest(seconds) for name, seconds in spent.items()}
    ratio = median(b / a for a, b in zip(found["no hook"], found["Auto"], strict=True))
    return [
        {
            "world_size": here.world,
            "picked": None if attachment.observers[0].bypass is not None else repr(attachment.reducer),
            "why": attachment.observers[0].line,
            "seconds_no_hook": timing(found["no hook"]).median,
            "seconds_auto": timing(found["Auto"]).median,
            "ratio": ratio,
            "repeats": options.steps,
        }
    ]


def contestant(model: str, reducer: Any, rank: int) -> tuple[Step, Any]:
    """A step of training, and the attachment."""
    task = tasks.load("charlm") if model == "charlm" else None
    module = Shapes() if task is None else task.model(0)
    ddp = DistributedDataParallel(module, gradient_as_bucket_view=True)
    optimizer = torch.optim.SGD(module.parameters(), 1e-3, fused=True)
    attachment = None if reducer is None else cc.attach(ddp, reducer)
    scale = torch.ones((), requires_grad=True)

    def step(number: int) -> None:
        if task is None:
            ddp(scale).backward()
        else:
            x, y = task.batch(0, number, rank)
            cross_entropy(ddp(x).flatten(0, -2), y.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, attachment
