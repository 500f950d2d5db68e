"""What the benchmarks train: small, real models on real data that need no network.

A task knows nothing of reducers. All it draws comes from seeds, so two runs of one task see the same model and, step
for step, the same batches, whatever carries their gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler


class Batch(NamedTuple):
    """Inputs and the classes to predict."""

    x: Tensor
    y: Tensor


class Task(Protocol):
    """Data, model and optimizer of one training job, seen from one rank."""

    name: str
    data: str
    """Where the data came from, for people."""

    def model(self, seed: int) -> nn.Module:
        """A fresh model; equal seeds give equal weights."""
        ...

    def optimizer(self, model: nn.Module) -> tuple[torch.optim.Optimizer, LRScheduler]:
        """The optimizer and the learning rate's schedule, the same whatever the reducer is."""
        ...

    def batch(self, seed: int, step: int, rank: int) -> Batch:
        """This rank's training batch of a step."""
        ...

    def validation(self, rank: int, world: int) -> list[Batch]:
        """This rank's share of the held-out data; the shares of all ranks are equally large."""
        ...


def load(name: str) -> Task:
    """The task of that name.

    Raises:
        ValueError: for a name that no task has.
    """
    from .charlm import CharLM
    from .digits import Digits

    tasks: dict[str, Callable[[], Task]] = {"charlm": CharLM, "digits": Digits}
    if name not in tasks:
        raise ValueError(f"load({name!r}): no such task; there are {', '.join(tasks)}.")
    return tasks[name]()
