"""Natural dithering: its exact variance, and omega attained, never exceeded, and below the published bound."""

from __future__ import annotations

from math import inf, sqrt

import pytest
import torch
from torch import Tensor

import compcomm as cc
from compcomm.testing.inputs import vectors
from compcomm.testing.round_trip import draws, trip

D = 256
COUNT = 4000


def _levels(bits: int) -> int:
    return 2 ** (bits - 1) - 1


def _variance(x: Tensor, bits: int, norm: float) -> Tensor:
    """(b - |x|)(|x| - a) for every element, a and b the levels around it."""
    x = x.double().abs()
    n = x.norm(norm, dim=-1, keepdim=True)
    r, lowest = x / n, 2.0 ** (1 - _levels(bits))
    low = torch.where(r < lowest, 0.0, 2.0 ** torch.floor(torch.log2(r.clamp_min(1e-300))))
    high = torch.where(r < lowest, lowest, 2 * low)
    return n**2 * ((high - r) * (r - low)).clamp_min(0.0)


def _ratio(x: Tensor, bits: int, norm: float) -> Tensor:
    return _variance(x, bits, norm).sum(-1) / x.double().square().sum(-1)


def _omega(bits: int, norm: float, n: int) -> float:
    omega = cc.Natural(bits, norm, block=-(-n // 16) * 16).omega(n)
    assert omega is not None
    return omega


@pytest.mark.parametrize("norm", [2, inf])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("kind", ["gaussian", "student-t", "ramp"])
def test_mean_and_variance_are_exact(bits: int, norm: float, kind: str) -> None:
    x = vectors(D, 3)[kind]
    error = draws(cc.Natural(bits, norm, block=D, dense_below=1), x, COUNT).double() - x.double()
    due = _variance(x, bits, norm)
    unit = (due / COUNT).sqrt() + 1e-6 * x.double().abs() + 2.0**-17 * float(x.norm(norm)) * 2.0 ** (1 - _levels(bits))
    # a rare event (a tiny element that goes up once in COUNT) is no normal variable: its mean is off by many units
    seen = due * COUNT > 100 * (2.0 ** (1 - _levels(bits)) * float(x.norm(norm))) ** 2
    assert float((error.mean(0).abs() / unit)[seen | (due == 0)].max() if seen.any() else 0.0) < 5
    total = error.square().sum(1)
    spread = float(total.std()) / sqrt(COUNT)
    assert float(total.mean()) == pytest.approx(float(due.sum()), abs=5 * spread + 1e-6 * float(due.sum()) + 1e-9)


@pytest.mark.parametrize("norm", [2, inf])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_what_is_sent_is_a_level_next_to_the_element(bits: int, norm: float) -> None:
    x = vectors(512, 4)["student-t"]
    t = trip(cc.Natural(bits, norm, dense_below=1), x)
    level = t.value.double().abs() / float(t.section[:4].view(torch.float32))
    k = torch.log2(level[level > 0])
    assert torch.equal(k, k.round()) and k.max() <= 0 and k.min() >= 1 - _levels(bits)
    r = (x.double() / x.double().norm(norm)).abs()
    lowest = 2.0 ** (1 - _levels(bits))
    low = torch.where(r < lowest, 0.0, 2.0 ** torch.floor(torch.log2(r)))
    assert ((level == low) | (level == torch.where(r < lowest, lowest, 2 * low)) | ((r - 1).abs() < 1e-6)).all()
    assert ((level == 0) | (t.value.sign() == x.sign())).all()


@pytest.mark.parametrize("n", [16, 64, 512, 4096])
@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_max_norm_omega_is_attained(bits: int, n: int) -> None:
    """One element at the norm, the others where the variance is worst: a share of the lowest level, or 2/3."""
    lowest = 2.0 ** (1 - _levels(bits))
    small = (sqrt(1 + (n - 1) * lowest**2) - 1) / 2
    omega = _omega(bits, inf, n)
    x = torch.full((n,), lowest / (2 * (1 + small)) if omega == small else 2 / 3, dtype=torch.float64)
    x[0] = 1.0
    filled = 4 * (n - 1) / 9
    due = small if omega == small else 0.125 * filled / (1 + filled)  # of 1/8: all but the norm's own share
    assert float(_ratio(x, bits, inf)) == pytest.approx(due, rel=1e-9)
    assert omega == max(small, 0.125 if bits > 2 else 0.0)


@pytest.mark.parametrize("n", [64, 512, 4096])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_l2_norm_omega_is_nearly_attained(bits: int, n: int) -> None:
    """All equal where the bound is c - 1; else n - 2 small ones of 4 c/9 in all, and two that carry the rest."""
    c = 2.0 ** (1 - _levels(bits)) * sqrt(n)
    omega = _omega(bits, 2, n)
    if bits == 2 or c > 2.25:
        assert omega == c - 1
        assert float(_ratio(torch.ones(1, n), bits, 2)) == pytest.approx(omega, rel=1e-6)
        return
    small = 4 * c / 9
    x = torch.full((n,), small / sqrt(n - 2), dtype=torch.float64)
    best = 0.0
    for share in torch.linspace(0.5, 0.999, 400):
        x[0] = sqrt(float(share) * (1 - small**2))
        x[1] = sqrt(float(1 - share) * (1 - small**2))
        best = max(best, float(_ratio(x, bits, 2)))
    assert 0.85 * omega < best <= omega


@pytest.mark.slow
@pytest.mark.parametrize("norm", [2, inf])
@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_no_search_exceeds_omega(bits: int, norm: float) -> None:
    """Hill climbing over 64 starts of each size, by scaling single elements; the exact variance is the objective."""
    g = torch.Generator().manual_seed(bits)
    for n in (2, 3, 5, 16, 100):
        x = torch.randn(64, n, generator=g).double().abs().pow(3) + 1e-3
        best = _ratio(x, bits, norm)
        for _ in range(400):
            trial = x.clone()
            at = torch.randint(n, (64,), generator=g)
            trial[torch.arange(64), at] *= torch.exp(torch.randn(64, generator=g).double())
            found = _ratio(trial, bits, norm)
            better = found > best
            x[better], best[better] = trial[better], found[better]
        assert float(best.max()) <= _omega(bits, norm, n) * (1 + 1e-9), n


def test_omega_is_below_the_published_bound() -> None:
    """1/8 + c min(1, c), c = n^(1/r) 2^(1-s), r = min(p, 2)."""
    for bits in range(2, 9):
        for n in (2, 16, 100, 512, 4096):
            c = sqrt(n) * 2.0 ** (1 - _levels(bits))
            for norm in (2, inf):
                assert _omega(bits, norm, n) <= 0.125 + c * min(1.0, c)


def test_two_bits_under_the_max_norm_are_terngrad() -> None:
    """E|C(x) - x|^2 = |x|_max |x|_1 - |x|^2, and omega = (sqrt(n) - 1)/2."""
    x = vectors(D, 5)["student-t"].double()
    due = float(x.abs().max() * x.abs().sum() - x.square().sum())
    assert float(_variance(x, 2, inf).sum()) == pytest.approx(due, rel=1e-9)
    assert _omega(2, inf, D) == pytest.approx((sqrt(D) - 1) / 2)


def test_four_bits_lose_less_than_equal_levels_do_at_worst() -> None:
    assert cc.Natural(bits=4).omega(512) == 0.125
    equal = cc.QSGD(bits=4).omega(512)
    assert equal is not None and equal > 1
