"""Trains one fresh model with one optimizer and writes down what it learnt and sent, phase by phase."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import isfinite
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
from loop import POINTS, loss_of, validate
from ranks import Ranks
from tasks import Batch, Task
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR

from .methods import HALF, Method, Phase

Row = dict[str, Any]


def fit(task: Task, method: Method, steps: int, seed: int, here: Ranks) -> Row:
    """One row. The curve holds (seconds, bytes sent per rank, steps, validation loss); seconds and bytes are those of
    training alone: at validations and between phases the clock stands still and the ranks wait for each other, so that
    what was sent is on the card when it is read. Where ranks are apart (0/1 Adam between two exchanges), each validates
    its own model on its share of the held-out data; ``validated_apart`` counts these validations."""
    module = task.model(seed)
    factor = task.optimizer(module)[1].lr_lambdas[0]
    model = DistributedDataParallel(module)
    optimizer = method.make(model, seed)
    schedule = LambdaLR(optimizer, factor)
    held_out = task.validation(here.rank, here.world)
    validations = {round(steps * k / POINTS) for k in range(1, POINTS + 1)}
    # Counters begin anew where a phase ends, so they are also read a step before.
    marks = sorted({0, *validations, *(m for p in method.phases for m in (p.start, p.stop - 1, p.stop))})
    curve: list[list[float]] = [[0.0, 0.0, 0, validate(module, held_out, here)]]
    seconds: dict[int, float] = {}  # of the steps from a mark on
    sent: dict[int, float] = {}
    counted: dict[int, tuple[int, float] | None] = {0: None}
    apart = 0
    try:
        for mark, until in pairwise(marks):
            dist.barrier()
            before, start = here.card_bytes(), perf_counter()
            for step in range(mark, until):
                x, y = task.batch(seed, step, here.rank)
                loss_of(model(x), y).backward()
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
            seconds[mark] = perf_counter() - start
            dist.barrier()
            sent[mark] = here.card_bytes() - before
            counted[until] = handed_over(optimizer)
            if until in validations:
                apart += getattr(optimizer, "local_steps", 0) > 0
                loss = validate(module, held_out, here)
                curve.append([sum(seconds.values()), sum(sent.values()), until, loss])
        accuracy = right(module, held_out, here) if task.name == "digits" else None
        frozen = getattr(optimizer, "frozen_at", None)
    finally:
        if hasattr(optimizer, "detach"):
            optimizer.detach()
    if method.freeze != frozen:
        raise RuntimeError(f"{method.name}: the variance was frozen after step {frozen}, not after {method.freeze}.")
    elapsed = dict(zip(seconds, here.slowest(list(seconds.values())), strict=True))
    traffic = dict(zip(sent, here.mean(*sent.values()), strict=True))
    for point, (s, b) in zip(curve[1:], _totals(curve, elapsed, traffic), strict=True):
        point[:2] = s, b
    return {
        "method": method.name,
        "optimizer": method.text,
        "beside": method.beside,
        "seed": seed,
        "world_size": here.world,
        "steps": steps,
        "rate": schedule.base_lrs[0],
        "loss": curve[-1][-1],
        "area": area(curve),
        "accuracy": accuracy,
        "seconds": curve[-1][0],
        "bytes_per_step": curve[-1][1] / steps,
        "validated_apart": apart,
        "phases": [
            {
                **p._asdict(),
                "seconds_per_step": within(p, elapsed),
                "bytes_per_step": within(p, traffic),
                "payload_bytes_per_step": payload(p, counted) or ring(method, module, here.world),
            }
            for p in method.phases
        ],
        "curve": curve,
    }


def _totals(curve: Sequence[Sequence[float]], *parts: dict[int, float]) -> list[tuple[float, ...]]:
    """For each point but the first the sum of every part's entries before it."""
    return [tuple(sum(v for mark, v in part.items() if mark < point[2]) for part in parts) for point in curve[1:]]


def within(phase: Phase, parts: dict[int, float]) -> float:
    """What was measured from mark to mark, per step of a phase."""
    return sum(v for mark, v in parts.items() if phase.start <= mark < phase.stop) / (phase.stop - phase.start)


def handed_over(optimizer: torch.optim.Optimizer) -> tuple[int, float] | None:
    """Steps since the optimizer began to count, and the bytes that this rank handed to the collectives in them; None:
    it does not count."""
    if not hasattr(optimizer, "report"):
        return None
    found = optimizer.report()
    return found.steps, found.bytes_sent * found.steps


def payload(phase: Phase, counted: dict[int, tuple[int, float] | None]) -> float | None:
    """Payload bytes per step of a phase; where the count begins anew with its last step, of the steps before."""
    first = counted[phase.start] or (0, 0.0)
    for stop in (phase.stop, phase.stop - 1):
        last = counted[stop]
        if last is not None and stop > phase.start and last[0] > first[0]:
            return (last[1] - first[1]) / (stop - phase.start)
    return None


def ring(method: Method, module: nn.Module, world: int) -> int:
    """Payload bytes per step of DDP's own all-reduce, which counts nothing."""
    width = 2 if method.name == HALF else 4
    return 2 * (width * sum(p.numel() for p in module.parameters()) * (world - 1) // world)


@torch.no_grad()
def right(module: nn.Module, batches: list[Batch], here: Ranks) -> float:
    """The share of the held-out data of all ranks that is classified as it should be."""
    hits = sum(int((module(b.x).argmax(-1) == b.y).sum()) for b in batches)
    return here.mean(hits / sum(b.y.numel() for b in batches))[0]


def area(curve: Sequence[Sequence[float]]) -> float:
    """The mean validation loss over the steps, on straight lines between validations; infinite where one is no number.

    >>> area([[0, 0, 0, 4.0], [0, 0, 10, 2.0], [0, 0, 30, 2.0]])
    2.3333333333333335
    """
    if not all(isfinite(point[3]) for point in curve):
        return float("inf")
    return sum((b[2] - a[2]) * (a[3] + b[3]) / 2 for a, b in pairwise(curve)) / curve[-1][2]
