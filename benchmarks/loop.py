"""Trains one fresh model with one reducer under one host, and writes down what it cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from ranks import Ranks
from sharding import attach, lay_out, payload, wrap
from tasks import Batch, Task
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LRScheduler

from compcomm.report.metrics import timing

POINTS = 20  # validations, spread evenly over the budget


@dataclass
class Budget:
    """When to stop: after seconds on the training clock, or after steps; exactly one of the two."""

    seconds: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        if (self.seconds is None) == (self.steps is None) or (self.seconds or self.steps or 0) <= 0:
            raise ValueError(f"{self}: give a positive number of seconds or of steps, and not both.")


@dataclass
class Clock:
    """Training time and traffic; it stands still during validation, the same for all reducers."""

    seconds: float = 0.0
    sent: float = 0.0
    steps: list[float] = field(default_factory=list)


Progress = Callable[[float, float, float], None]
"""Told the share of the budget that is spent, the seconds of training, and the last validation loss."""


def train(
    task: Task, reducer: Any, budget: Budget, ranks: Ranks, progress: Progress, *, seed: int = 0, host: str = "ddp"
) -> dict[str, Any]:
    """One row: ``reducer`` averages the gradients of a fresh model; None is the host's own collectives.

    The curve holds (seconds, bytes sent per rank, steps, validation loss); seconds and bytes are those of training
    alone. How many steps come before the next validation is decided by rank 0 while the clock stands still, so no
    message in training time says when to stop.
    """
    module = task.model(seed)
    numel = sum(p.numel() for p in module.parameters())
    mesh = lay_out(host, ranks.world // ranks.local)
    model = wrap(module, host, mesh, reducer is None)
    optimizer, schedule = task.optimizer(module)
    attachment = None if reducer is None else attach(model, host, mesh, reducer, seed=seed, optimizer=optimizer)
    held_out = task.validation(ranks.rank, ranks.world)
    clock = Clock()
    curve = [[0.0, 0.0, 0, validate(module, held_out, ranks)]]
    try:
        for point in range(1, POINTS + 1):
            share = point / POINTS
            while count := ranks.agree(due(clock, budget, share)):
                before, start = ranks.card_bytes(), time.perf_counter()
                mark = start
                for _ in range(count):
                    step(model, task.batch(seed, len(clock.steps), ranks.rank), optimizer, schedule)
                    now = time.perf_counter()
                    clock.steps.append(now - mark)
                    mark = now
                    progress(spent(clock, budget, now - start), clock.seconds + now - start, curve[-1][-1])
                clock.seconds += mark - start
                clock.sent += ranks.card_bytes() - before
            if len(clock.steps) > curve[-1][2]:
                sent, loss = ranks.mean(clock.sent, validate(module, held_out, ranks))
                curve.append([clock.seconds, sent, len(clock.steps), loss])
                progress(spent(clock, budget), clock.seconds, loss)
        report = None if attachment is None else attachment.report()
    finally:
        if attachment is not None:
            attachment.detach()
    steps = len(clock.steps)
    pace = timing(clock.steps)
    kernel, wire = (None, None) if report is None else ranks.mean(report.kernel_seconds, report.wire_seconds)
    return {
        "reducer": "None" if reducer is None else repr(reducer),
        "host": host,
        "world_size": ranks.world,
        "steps": steps,
        "seconds": clock.seconds,
        "seconds_per_step": pace.median,
        "seconds_per_step_spread": pace.spread,
        "kernel_seconds": kernel,
        "wire_seconds": wire,
        "bytes_per_step": curve[-1][1] / steps,
        "payload_bytes_per_step": payload(host, mesh, numel, ranks.world)
        if report is None
        else round(report.bytes_sent),
        "loss": curve[-1][-1],
        "curve": curve,
    }


def step(model: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer, schedule: LRScheduler) -> None:
    """One training step."""
    loss_of(model(batch.x), batch.y).backward()
    optimizer.step()
    optimizer.zero_grad()
    schedule.step()


def due(clock: Clock, budget: Budget, share: float) -> int:
    """Steps until ``share`` of the budget is spent, 0 when the next step would overshoot by more than it lacks."""
    if budget.steps is not None:
        return round(budget.steps * share) - len(clock.steps)
    assert budget.seconds is not None
    if not clock.steps:
        return 1
    left, pace = budget.seconds * share - clock.seconds, clock.seconds / len(clock.steps)
    if len(clock.steps) < 8:  # the first steps are slow, and say little about the next ones
        return 1 if left > pace / 2 else 0
    return max(0, round(left / pace))


def spent(clock: Clock, budget: Budget, running: float = 0.0) -> float:
    """The share of the budget that is used up."""
    if budget.steps is not None:
        return len(clock.steps) / budget.steps
    assert budget.seconds is not None
    return min(1.0, (clock.seconds + running) / budget.seconds)


def loss_of(logits: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(logits.flatten(0, -2), y.flatten())


@torch.no_grad()
def validate(module: nn.Module, batches: list[Batch], ranks: Ranks) -> float:
    """The mean loss on the held-out data of all ranks."""
    count = sum(b.y.numel() for b in batches)
    return ranks.mean(sum(float(loss_of(module(b.x), b.y)) * b.y.numel() for b in batches) / count)[0]
