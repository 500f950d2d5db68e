"""Numbers that a table of runs compares: medians with their spread, and the time to reach a loss."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median, quantiles
from typing import NamedTuple


class Timing(NamedTuple):
    """A median and, as ``spread``, the quartiles around it: half of all measurements lie between these two."""

    median: float
    spread: tuple[float, float]


def timing(seconds: Sequence[float]) -> Timing:
    """What to say of repeated measurements; at least one.

    >>> timing([1.0, 2.0, 4.0, 3.0, 9.0])
    Timing(median=3.0, spread=(2.0, 4.0))
    """
    if len(seconds) == 1:
        return Timing(seconds[0], (seconds[0], seconds[0]))
    low, _, high = quantiles(seconds, n=4, method="inclusive")
    return Timing(median(seconds), (low, high))


def first_crossing(x: Sequence[float], loss: Sequence[float], target: float) -> float | None:
    """The first ``x`` at which ``loss`` is down at ``target``, on straight lines between the points; None: never.

    >>> first_crossing([0, 10, 20], [4.0, 3.0, 2.0], 2.5), first_crossing([0, 10], [4.0, 3.0], 2.5)
    (15.0, None)
    """
    for i, here in enumerate(loss):
        if here <= target:
            if i == 0:
                return float(x[0])
            before = loss[i - 1]
            return x[i - 1] + (x[i] - x[i - 1]) * (before - target) / (before - here)
    return None


def at(x: Sequence[float], y: Sequence[float], where: float) -> float:
    """``y`` at ``where`` on straight lines between points of ascending ``x``; the end's value beyond either end.

    >>> at([0, 10], [4.0, 3.0], 5), at([0, 10], [4.0, 3.0], 50)
    (3.5, 3.0)
    """
    if where <= x[0]:
        return float(y[0])
    for i in range(1, len(x)):
        if where <= x[i]:
            return y[i - 1] + (y[i] - y[i - 1]) * (where - x[i - 1]) / (x[i] - x[i - 1])
    return float(y[-1])
