"""SIDCo's threshold, stage by stage, in fp64."""

from __future__ import annotations

from math import ceil, expm1, inf, log, sqrt

import numpy as np
from scipy.special import gammaincinv

from .topk import select


def pareto(mean: float, variance: float, ratio: float) -> float:
    """The generalised Pareto distribution with that mean and variance: where it leaves ``ratio``."""
    shape, scale = 0.5 * (mean**2 / variance - 1), 0.5 * mean * (mean**2 / variance + 1)
    return scale * (-log(ratio) if abs(shape) < 1e-9 else -expm1(shape * log(ratio)) / shape)


def gamma(a: np.ndarray, ratio: float) -> float:
    """The gamma distribution by its two logarithmic moments."""
    s = log(a.mean()) - float(np.log(np.maximum(a, 2.0**-126)).mean())
    shape = (3 - s + sqrt((s - 3) ** 2 + 24 * s)) / (12 * s)
    return float(a.mean() / shape * gammaincinv(shape, 1 - ratio))


def stages(ratio: float) -> int:
    """How many, where nothing is known."""
    return max(1, min(ceil(log(ratio) / log(0.5)), 1 + round(log(4 * ratio) / log(1 / 6))))


def thresholds(y: np.ndarray, ratio: float, fit: str, stages: int) -> list[float]:
    """eta_1 to eta_M; infinity where too little is left to fit."""
    a = np.abs(y).astype(np.float64)
    first = ratio if stages == 1 else 0.25 if ratio < 0.25 else ratio ** (1 / stages)
    if fit == "exponential":
        found = [-a.mean() * log(first)]
    else:
        found = [pareto(a.mean(), a.var(), first) if fit == "pareto" else gamma(a, first)]
    for _ in range(1, stages):
        tail = a[a > found[-1]]
        if len(tail) < 2:
            return [*found, inf]
        later, begin = (ratio / first) ** (1 / (stages - 1)), float(tail.min())
        over = tail.mean() - begin
        found.append(begin + (-over * log(later) if fit == "exponential" else pareto(over, tail.var(), later)))
    return found


def kept(y: np.ndarray, ratio: float, capacity: int, threshold: float) -> list[int]:
    """What exceeds the threshold, within bounds."""
    exceed = [int(i) for i in np.flatnonzero(np.abs(y) > threshold)]
    target = max(1, ceil(ratio * len(y) - 1e-9))
    if 4 * len(exceed) < target:
        return select(y, target)
    return exceed if len(exceed) <= capacity else select(y, capacity)
