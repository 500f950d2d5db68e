"""What the messages of a step say: known to the host at once, or left on the device until the step is over.

On a CPU a flow reads every header, and whether the step is bad is a ``bool``. On a GPU reading would make the host wait
for the device in the middle of the backward pass. There the answer stays a tensor (uint8 [1];
``bool`` of it waits), kernels act on it where they run (``fill_nan_where``, tables with marks), and what only the host
can do, raising an error or undoing a step, waits until the scheduler reads all of the step's at once, before the next
one begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from math import isfinite
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..ops.schema import current_backend
from .layout import Bucket, Layout

DeferredBool = bool | Tensor
"""A bool, or uint8 [1] on a device: 0 or 1."""


class DeferredError(NamedTuple):
    """Something a peer may have done: ``word`` (int64 [1]) is 0 where it did not; else ``explain`` makes the error."""

    word: Tensor
    explain: Callable[[int], Exception]


def deferred(tensor: Tensor) -> bool:
    """Whether what this tensor says is left on its device: a GPU, or the kernels for GPUs on the host."""
    if tensor.is_meta:
        return False
    return tensor.device.type != "cpu" or current_backend() in ("triton", "cuda")


def either(a: DeferredBool, b: DeferredBool) -> DeferredBool:
    """Whether one of the two holds."""
    if isinstance(a, Tensor):
        return a | b if isinstance(b, Tensor) else torch.ones_like(a) if b else a
    return True if a else b


def raise_deferred(faults: Iterable[DeferredError]) -> None:
    """Raises the first error that the device has found; waits for it."""
    for fault in faults:
        word = int(fault.word)
        if word:
            raise fault.explain(word)


class Asked:
    """Errors that a device may have found, asked for without waiting: what it has said by then is raised at the next
    ``look``."""

    def __init__(self) -> None:
        self._pending: list[tuple[list[DeferredError], Tensor, Any]] = []

    def ask(self, faults: list[DeferredError]) -> None:
        """Has these words copied to the host once the device comes to it."""
        if not faults:
            return
        words = torch.cat([fault.word.view(1) for fault in faults])
        event = None
        if words.is_cuda:
            there = torch.empty(len(faults), dtype=words.dtype, pin_memory=True)
            words = there.copy_(words, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._pending.append((faults, words, event))

    def look(self) -> None:
        """Raises the first error of those that the device has told of."""
        pending, self._pending = self._pending, []
        for faults, words, event in pending:
            if event is not None and not event.query():
                self._pending.append((faults, words, event))
                continue
            raise_deferred(fault._replace(word=word) for fault, word in zip(faults, words, strict=True))


def is_true(condition: Tensor) -> DeferredBool:
    """A condition (bool, one element) as a deferred bool: read at once, or left where it is."""
    return condition.view(1).view(torch.uint8) if deferred(condition) else bool(condition)


def not_finite(total: Tensor) -> DeferredBool:
    """Whether a sum has an element that is not finite: 40,000 from each of two ranks does not fit float16."""
    if total.is_meta or not total.numel():
        return False
    if deferred(total):
        largest = torch.linalg.vector_norm(total, torch.inf)  # NaN, if there is one; one pass, and three launches
        return is_true(torch.logical_not(largest < torch.inf))
    return not isfinite(float(total.sum(dtype=torch.float32))) and not bool(torch.isfinite(total).all())


def fill_nan_where(out: Bucket, bad: DeferredBool) -> None:
    """NaN in every element of ``out`` where the step is bad."""
    if isinstance(bad, Tensor):
        torch.ops.compcomm.fill_masked(out.flat, _whole(out.layout), bad, float("nan"))
    elif bad:
        out.fill_(float("nan"))


def clear(total: Tensor, bad: DeferredBool) -> None:
    """Zeroes a sum that must not be taken in where the step is bad."""
    if isinstance(bad, Tensor):
        total.masked_fill_(bad.view(torch.bool), 0)
    elif bad:
        total.zero_()


@lru_cache(maxsize=4096)
def _whole(layout: Layout) -> Tensor:
    """A row per segment, or one for all where there is no padding between them; all marked by entry 0."""
    rows = [(0, 0, layout.numel, 0)] if layout.covers else [(s.start, s.start, s.numel, 0) for s in layout.segments]
    return torch.tensor(rows, dtype=torch.int64).view(-1, 4)
