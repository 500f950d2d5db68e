"""What a cast to 8 bits loses: the largest errors of single elements, delta, and the table of figures."""

from __future__ import annotations

from math import floor, log2

import pytest
import torch

import compcomm as cc
from compcomm.testing.inputs import vectors
from compcomm.testing.round_trip import trip

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def _lost(to: torch.dtype, x: torch.Tensor, block: int = 512) -> float:
    error = trip(cc.Cast(to, dense_below=1, block=block), x).error.double()
    return float(error.square().sum() / x.double().square().sum())


@pytest.mark.parametrize(
    ("to", "unit", "least", "half"), [(E4M3, 2.0**-4, 2.0**-6, 2.0**-10), (E5M2, 2.0**-3, 2.0**-14, 2.0**-17)]
)
def test_errors_of_single_elements(to: torch.dtype, unit: float, least: float, half: float) -> None:
    """unit/(1 + unit) of a normal element, half the least subnormal below; both bounds are attained."""
    top = torch.finfo(to).max
    t = torch.cat((torch.logspace(-9, 0, 511, dtype=torch.float64) * top, torch.tensor([top]))).float()
    t[:2] = torch.tensor([1 + unit, half])  # midpoints: between 1 and the next number, between 0 and the first
    error, size = trip(cc.Cast(to, dense_below=1), t).error.double().abs(), t.double()
    normal = size >= least
    bound = unit / (1 + unit)
    assert float((error / size)[normal].max()) == pytest.approx(bound, rel=1e-5)
    assert float(error[~normal].max()) == pytest.approx(half, rel=1e-5)


@pytest.mark.parametrize(("to", "unit"), [(E4M3, 2.0**-4), (E5M2, 2.0**-3)])
def test_delta(to: torch.dtype, unit: float) -> None:
    """The worst vector, all midpoints above powers of two but for one at the top, loses (unit/(1 + unit))^2."""
    c = cc.Cast(to)
    delta = c.delta(512)
    assert delta == 1 - unit**2
    top = torch.finfo(to).max
    x = torch.full((512,), (1 + unit) * 2.0 ** floor(log2(top)))
    x[0] = top
    worst = (unit / (1 + unit)) ** 2
    share = float(x[1:].double().square().sum() / x.double().square().sum())
    assert _lost(to, x) == pytest.approx(worst * share, rel=1e-4) and worst < 1 - delta
    for name, v in vectors(700, 1).items():
        assert _lost(to, v) <= worst * (1 + 1e-5), name


def test_only_absurd_blocks_weaken_delta() -> None:
    huge = cc.Cast(E4M3, block=1 << 40)
    assert huge.delta(1 << 20) == 1 - 2.0**-8
    far = huge.delta(1 << 34)
    assert far is not None and 0 < far < 1 - 2.0**-8


@pytest.mark.parametrize(
    ("to", "kind", "mean", "lost"),
    [
        (E4M3, "gaussian", 7.0e-4, 0.0),
        (E5M2, "gaussian", 2.77e-3, 0.0),
        (E4M3, "student-t", 7.6e-4, 4e-5),
        (E5M2, "student-t", 2.77e-3, 0.0),
        (E4M3, "lognormal", 0.12, 0.106),
        (E5M2, "lognormal", 2.8e-3, 4e-5),
    ],
)
def test_table_of_errors_per_element(to: torch.dtype, kind: str, mean: float, lost: float) -> None:
    """Mean of the squared relative errors, and the share of elements that become zero: where a block's elements span
    more than 18 binary orders (lognormal, sigma 3), the third mantissa bit is worth less than the wider exponent."""
    x = vectors(512 * 200, 5)[kind]
    error = trip(cc.Cast(to, dense_below=1), x).error
    assert float((error / x).double().square().mean()) == pytest.approx(mean, rel=0.05)
    assert float((error == x).double().mean()) == pytest.approx(lost, rel=0.1, abs=5e-5)


@pytest.mark.parametrize(("to", "figure"), [(E4M3, 6.9e-4), (E5M2, 2.75e-3)])
def test_error_on_gaussian_data(to: torch.dtype, figure: float) -> None:
    x = vectors(512 * 200, 5)["gaussian"]
    assert _lost(to, x) == pytest.approx(figure, rel=0.02)
