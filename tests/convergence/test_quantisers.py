"""What quantisers lose: the exact variance of random rounding, and the exact error of signs."""

from __future__ import annotations

from math import inf, pi, sqrt

import pytest
import torch
from torch import Tensor

import compcomm as cc
from compcomm.testing.inputs import vectors
from compcomm.testing.round_trip import draws, trip

D = 256


def _gaussian(count: int) -> Tensor:
    return torch.randn(count, D, generator=torch.Generator().manual_seed(7))


def _coded(c: cc.Compressor, rows: Tensor) -> Tensor:
    """Every row through the compressor, as a parameter of its own."""
    count, n = rows.shape
    layout = cc.Layout.of((f"w{i}", (1, n)) for i in range(count))
    payload = c.encode_(cc.Bucket(rows.reshape(-1).clone(), layout), cc.Rng(seed=1))
    return payload.dense(layout).flat.view(count, n)


def _relative(c: cc.Compressor, rows: Tensor) -> Tensor:
    rows64 = rows.double()
    return (_coded(c, rows).double() - rows64).square().sum(1) / rows64.square().sum(1)


def _variance(x: Tensor, s: int, norm: float) -> float:
    """(N/s)^2 sum u (1 - u), u the fractional part of s|x|/N."""
    x = x.double()
    n = float(x.norm(norm))
    u = (s * x.abs() / n).frac()
    return float((n / s) ** 2 * (u * (1 - u)).sum())


@pytest.mark.parametrize("norm", [2, inf])
@pytest.mark.parametrize("levels", [1, 4, 16])
@pytest.mark.parametrize("kind", ["gaussian", "student-t", "ramp"])
def test_variance_of_qsgd_is_the_exact_one(levels: int, norm: float, kind: str) -> None:
    x = vectors(D, 3)[kind]
    c = cc.QSGD(levels=levels, norm=norm, block=D, dense_below=1)
    errors = (draws(c, x, 4000).double() - x.double()).square().sum(1)
    due = _variance(x, levels, norm)
    assert float(errors.mean()) == pytest.approx(due, abs=5 * float(errors.std()) / sqrt(4000) + 1e-9 * due)


@pytest.mark.parametrize(
    ("levels", "norm", "figure"), [(1, 2, 11.9), (4, 2, 2.23), (16, 2, 0.171), (1, inf, 1.48), (4, inf, 0.099)]
)
def test_relative_variance_on_gaussian_vectors(levels: int, norm: float, figure: float) -> None:
    """Averages over vectors; the published figures are of one vector of 256 each, whose maximum varies by a tenth."""
    c = cc.QSGD(levels=levels, norm=norm, block=D, dense_below=1)
    assert float(_relative(c, _gaussian(2000)).mean()) == pytest.approx(figure, rel=0.05 if norm == 2 else 0.15)


def test_one_level_under_the_max_norm_is_terngrad() -> None:
    """E|C(x) - x|^2 = |x|_max |x|_1 - |x|^2."""
    x = vectors(D, 5)["student-t"]
    errors = (draws(cc.QSGD(levels=1, block=D, dense_below=1), x, 4000).double() - x.double()).square().sum(1)
    due = float(x.abs().max() * x.double().abs().sum() - x.double().square().sum())
    assert float(errors.mean()) == pytest.approx(due, abs=5 * float(errors.std()) / sqrt(4000))


def test_a_single_spike_is_sent_without_loss() -> None:
    for norm in (2, inf):
        t = trip(cc.QSGD(bits=4, norm=norm, dense_below=1), vectors(D)["1-sparse"])
        assert float(t.error.norm()) <= 1e-6 * float(t.y.norm())


def test_max_norm_omega_is_attained() -> None:
    """One element at the norm, all others at the worst level: the bound holds with equality."""
    for s in (1, 3, 7):
        n = 512
        t = (sqrt(s**4 + (n - 1) * s**2) - s**2) / (n - 1)
        x = torch.full((n,), t / s)
        x[0] = 1.0
        omega = cc.QSGD(levels=s).omega(n)
        assert omega is not None
        assert _variance(x, s, inf) / float(x.double().square().sum()) == pytest.approx(omega, rel=1e-5)


def test_nearest_delta_is_attained() -> None:
    """One element at the norm, all others just below half a level."""
    for s in (1, 7, 127):
        x = torch.full((512,), 0.49999 / s)
        x[0] = 1.0
        c = cc.QSGD(levels=s, rounding="nearest", dense_below=1)
        t = trip(c, x)
        delta = c.delta(512)
        assert delta is not None
        lost = float(t.error.double().square().sum() / x.double().square().sum())
        assert lost == pytest.approx(1 - delta, rel=1e-3) and lost <= 1 - delta


@pytest.mark.parametrize("kind", ["gaussian", "student-t", "1-sparse", "alternating", "ramp", "constant"])
def test_sign_errors_are_exact(kind: str) -> None:
    """l1: |x|^2 - |x|_1^2/d;  l2: 2|x|^2 (1 - |x|_1/(sqrt(d) |x|))."""
    x = vectors(D)[kind]
    x64 = x.double()
    one, two = float(x64.abs().sum()), float(x64.norm())
    l1 = trip(cc.SignScale(dense_below=1), x).error.double().square().sum()
    l2 = trip(cc.SignScale("l2", dense_below=1), x).error.double().square().sum()
    assert float(l1) == pytest.approx(two**2 - one**2 / D, rel=1e-5, abs=1e-6 * two**2)
    assert float(l2) == pytest.approx(2 * two**2 * (1 - one / (sqrt(D) * two)), rel=1e-5, abs=1e-6 * two**2)


def test_sign_figures() -> None:
    rows = _gaussian(2000)
    l1, l2 = _relative(cc.SignScale(dense_below=1), rows), _relative(cc.SignScale("l2", dense_below=1), rows)
    assert float(l1.mean()) == pytest.approx(1 - 2 / pi, rel=0.01)
    assert float(l2.mean()) == pytest.approx(2 * (1 - sqrt(2 / pi)), rel=0.01)
    spike = vectors(D)["1-sparse"].unsqueeze(0)
    assert float(_relative(cc.SignScale("l2", dense_below=1), spike)) == pytest.approx(1.875, rel=1e-6)
    assert float(_relative(cc.SignScale(dense_below=1), spike)) == pytest.approx(1 - 1 / D, rel=1e-6)
