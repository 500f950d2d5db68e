"""Steps of real processes: with telemetry and without, and under Auto against no hook; in turns, to share the noise."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
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
from compcomm.report.metrics import timing
from compcomm.testing.shapes import resnet50

PLAIN = "ErrorFeedback(TopK(ratio=0.01))"
WAIT = 0.25
"""Seconds that ResNet-50's shapes wait in place of computation."""
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
    """Whole periods, without and with telemetry in turns; the mean step of a period counts."""
    every = options.every
    plain, _ = contestant(options.model, cc.parse(PLAIN), here.rank)
    pinned = Pinned(cc.TopK(ratio=0.01), every=every)
    measured, attachment = contestant(options.model, cc.ErrorFeedback(pinned), here.rank)
    spent: dict[str, list[list[float]]] = {"without": [], "with": []}
    for step in (*range(5),):
        plain(step)
        measured(step)
    done = 5
    for _ in range(max(2, options.steps // every)):
        for name, go in (("without", plain), ("with", measured)):
            dist.barrier()
            seconds: list[float] = []
            for step in range(done, done + every):
                since = time.perf_counter()
                go(step)
                seconds.append(time.perf_counter() - since)
            spent[name].append(here.slowest(seconds))
        done += every
    per = {name: [sum(block) / len(block) for block in blocks] for name, blocks in spent.items()}
    shares = [b / a - 1 for a, b in zip(per["without"], per["with"], strict=True)]
    counters = attachment.counters()
    # From the end of a period until it has taken effect; there were five steps before.
    about = [i for i in range(every) if (i + 6) % every <= 2 * pinned.lag]
    return [
        {
            "world_size": here.world,
            "every": every,
            "periods": len(shares),
            "seconds_without": median(per["without"]),
            "seconds_with": median(per["with"]),
            "share_of_a_step": median(shares),
            "shares": shares,
            "longest_over_median_without": max(max(b) / median(b) for b in spent["without"]),
            "longest_over_median_with": max(max(b) / median(b) for b in spent["with"]),
            "at_review_over_median_without": median(max(b[i] for i in about) / median(b) for b in spent["without"]),
            "at_review_over_median_with": median(max(b[i] for i in about) / median(b) for b in spent["with"]),
            "review_seconds_per_step": counters.review_seconds / counters.step,
        }
    ]


def auto(here: Ranks, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Steps after Auto's pick, against DDP without a hook, step by step in turns."""
    plain, _ = contestant(options.model, None, here.rank)
    own, attachment = contestant(options.model, cc.Auto(), here.rank)
    for step in range(16):
        plain(step)
        own(step)
    spent: dict[str, list[float]] = {"no hook": [], "Auto": []}
    for step in range(16, 16 + options.steps):
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
            "picked": None if attachment.plain is not None else repr(attachment.reducer),
            "why": attachment.pilot.line,
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
