"""Thresholds of fitted distributions: which magnitude a share ``ratio`` of the data exceeds.

All functions take fp64 vectors, one entry per parameter, and give NaN where the data do not determine a fit (all
magnitudes alike, sums that left the range of fp32). By moments (gamma: of the values and
their logarithms), as in Abdelmoniem, Elzanaty, Alouini, Canini 2021 (arXiv:2101.10761), section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor


def exponential(mean: Tensor, ratio: Tensor) -> Tensor:
    """P(a > eta) = exp(-eta/mean) = ratio."""
    return -mean * ratio.log()


def pareto(mean: Tensor, square: Tensor, variance: Tensor, ratio: Tensor) -> Tensor:
    """P(a > eta) = (1 - k eta/alpha)^(1/k) = ratio; ``square`` is mean^2. k = 0 is the exponential."""
    inverse = square / variance
    shape, scale = 0.5 * (inverse - 1.0), 0.5 * mean * (inverse + 1.0)
    log = ratio.log()
    flat = shape.abs() < 1e-9
    return scale * torch.where(flat, -log, -torch.expm1(shape * log) / torch.where(flat, 1.0, shape))


def gamma(mean: Tensor, mean_log: Tensor, ratio: Tensor) -> Tensor:
    """P(a > eta) = Q(shape, eta shape/mean) = ratio; the shape approximates the root of its likelihood equation."""
    s = mean.log() - mean_log
    shape = (3.0 - s + ((s - 3.0).square() + 24.0 * s).sqrt()) / (12.0 * s)
    shape = torch.where((s > 0) & torch.isfinite(shape), shape, torch.nan)
    return mean / shape * gamma_quantile(shape, ratio)


def gamma_quantile(shape: Tensor, upper: Tensor) -> Tensor:
    """The x with Q(shape, x) = upper (regularised incomplete gamma): Newton on ln Q over ln x, held in a bracket."""
    low, high = torch.full_like(shape, -700.0), (2.0 * shape + 100.0).log()
    u = shape.log()
    for _ in range(40):
        x = u.exp()
        q = torch.special.gammaincc(shape, x)
        above = q > upper  # x is still too small
        low, high = torch.where(above, u, low), torch.where(above, high, u)
        slope = -(shape * u - x - torch.lgamma(shape)).exp()  # dQ/du
        step = u - (q.log() - upper.log()) * q / slope
        u = torch.where((step > low) & (step < high), step, 0.5 * (low + high))
    return u.exp()
