"""Quantisers of the standard normal distribution: the levels, and what they lose.

All solved in fp64 from their defining equations and then rounded to multiples of a power of two, so that every machine
and every instruction set holds the same fp32 numbers. Only the positive half of a symmetric codebook is kept.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from math import erfc, exp, inf, pi, sqrt

import numpy as np
import torch
from torch import Tensor


def _density(t: float) -> float:
    return exp(-t * t / 2) / sqrt(2 * pi)


def _tail(t: float) -> float:
    return erfc(t / sqrt(2)) / 2


def _moments(bounds: list[float]) -> tuple[list[float], list[float]]:
    """P(cell) and E[t; cell] of the cells between 0, the bounds and infinity."""
    edges = [0.0, *bounds, inf]
    tails, densities = [_tail(e) for e in edges], [_density(e) for e in edges]
    return [a - b for a, b in pairwise(tails)], [a - b for a, b in pairwise(densities)]


def distortion(half: list[float]) -> float:
    """E(t - nearest level)^2, t normal with variance 1."""
    weights, means = _moments([(a + b) / 2 for a, b in pairwise(half)])
    return 1 - 2 * sum(2 * c * m - c * c * w for c, m, w in zip(half, means, weights, strict=True))


def _rounded(half: list[float], unit: float) -> tuple[float, ...]:
    return tuple(round(c / unit) * unit for c in half)


@lru_cache
def lloyd_max(bits: int) -> tuple[float, ...]:
    """The positive half of the 2^bits levels that lose least: each is the mean of its cell, each boundary a midpoint.

    Newton's method on c_i - E[t | cell i] = 0, whose Jacobian is tridiagonal, from the quantiles of the density's cube
    root (normal with variance 3), which are optimal for many levels. Unique, since the density is log-concave.
    Multiples of 2^-16. Source: Max 1960; Lloyd 1982.
    """
    m = 1 << (bits - 1)
    c = np.array([sqrt(3) * _quantile((m + i + 0.5) / (2 * m)) for i in range(m)])
    for _ in range(100):
        bounds = ((c[1:] + c[:-1]) / 2).tolist()
        weights, means = (np.array(v) for v in _moments(bounds))
        residual = c - means / weights
        edge = np.array([b and _density(b) for b in bounds])
        # d mean_i / d upper bound = density (bound - mean) / weight, and minus that at the lower one
        up = edge * (np.array(bounds) - (means / weights)[:-1]) / weights[:-1] / 2
        down = -edge * (np.array(bounds) - (means / weights)[1:]) / weights[1:] / 2
        jacobian = np.eye(m)
        i = np.arange(m - 1)
        jacobian[i, i] -= up
        jacobian[i, i + 1] -= up
        jacobian[i + 1, i + 1] -= down
        jacobian[i + 1, i] -= down
        change = np.linalg.solve(jacobian, residual)
        share = 1.0
        while (np.diff(c - share * change) <= 0).any() or c[0] <= share * change[0]:
            share /= 2
        c = c - share * change
        if np.abs(change).max() < 1e-12:
            break
    return _rounded(c.tolist(), 2.0**-16)


def _quantile(p: float) -> float:
    """The normal quantile of p in (1/2, 1), by bisection."""
    low, high = 0.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if _tail(middle) < 1 - p else (middle, high)
    return low


@lru_cache
def uniform(bits: int) -> tuple[float, ...]:
    """The positive half of the 2^bits levels +-D/2, +-3D/2, ... with the D that loses least (golden section; D/2 a
    multiple of 2^-20). The largest level, the clip range, is a_bits = (2^bits - 1) D/2."""
    m = 1 << (bits - 1)

    def grid(half_step: float) -> list[float]:
        return [half_step * (2 * i + 1) for i in range(m)]

    low, high, golden = 0.5 / m, 5.0 / m, (sqrt(5) - 1) / 2
    while high - low > 2.0**-30:
        a, b = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, b) if distortion(grid(a)) < distortion(grid(b)) else (a, high)
    return tuple(grid(_rounded([low], 2.0**-20)[0]))


@lru_cache
def as_tensor(*halves: tuple[float, ...]) -> Tensor:
    """Half codebooks one after the other, fp32: what the ops take."""
    return torch.tensor([c for half in halves for c in half], dtype=torch.float32)
