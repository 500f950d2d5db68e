"""Numbers that a table of runs compares: medians with their spread, and the time to reach a loss."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
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


def time_to_loss(x: Sequence[float], loss: Sequence[float], target: float) -> float | None:
    """The ``x`` from which ``loss`` stays at or below ``target`` to the end, on straight lines between the points.

    One lucky dip is not enough: what counts is the last way down. None where the last loss is above the target, or is
    no number. A point that is not finite lies above every target, and the line from it counts from its far end.

    >>> time_to_loss([0, 10, 20], [4.0, 3.0, 2.0], 2.5), time_to_loss([0, 10, 20, 30], [4.0, 2.0, 3.0, 2.0], 2.5)
    (15.0, 25.0)
    >>> time_to_loss([0, 10, 20], [4.0, 2.0, 3.0], 2.5)
    """
    above = [i for i, here in enumerate(loss) if not here <= target]  # so written, a NaN is above
    if not above:
        return float(x[0])
    i = above[-1]
    if i == len(loss) - 1:
        return None
    if not isfinite(loss[i]):
        return float(x[i + 1])
    return x[i] + (x[i + 1] - x[i]) * (loss[i] - target) / (loss[i] - loss[i + 1])


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
