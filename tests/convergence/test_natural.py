"""Natural compression: the figures of its definition, on grids and on Gaussian data."""

from __future__ import annotations

from math import sqrt

import pytest
import torch
from torch import Tensor

import compcomm as cc
from compcomm.testing.inputs import vectors
from compcomm.testing.round_trip import draws, trip

NATURAL = cc.Natural(dense_below=1)
COUNT = 4000


def _power(e: Tensor) -> Tensor:
    return (2.0 ** e.double()).float()


def _relative_variance(m: Tensor) -> Tensor:
    return m * (1 - m) / (1 + m) ** 2


@pytest.mark.parametrize("kind", ["gaussian", "student-t", "lognormal", "tiny", "huge", "scales", "1-sparse"])
def test_what_is_sent_is_one_of_the_two_powers_of_two_around(kind: str) -> None:
    t = trip(NATURAL, vectors(3000)[kind])
    mantissa, _ = torch.frexp(t.value)
    assert ((mantissa.abs() == 0.5) | (t.value == 0)).all()
    assert ((t.value == 0) == (t.y == 0)).all() and (t.value.sign() == t.y.sign()).all()
    _, e = torch.frexp(t.y)
    low = _power(e - 1)
    assert ((t.value.abs() == low) | (t.value.abs() == 2 * low) | (t.y == 0)).all()


def test_powers_of_two_are_sent_as_they_are() -> None:
    x = _power(torch.arange(-126, 128))
    for y in (x, -x):
        t = trip(NATURAL, y)
        assert torch.equal(t.value, y) and not t.error.any() and t.payload.status[0] == 0


def test_mean_and_variance_on_a_grid_of_mantissas() -> None:
    """Probability m and variance m (1 - m)/(1 + m)^2 for each of 97 mantissas, in four octaves and either sign."""
    m = torch.cat((torch.arange(96) / 96, torch.tensor([1 / 3])))
    scale = torch.tensor([1.0, -0.25, 2.0**40, -(2.0**-100)])[:, None]
    x = ((1 + m) * scale).float().view(-1)
    relative = draws(NATURAL, x, COUNT).double() / x.double() - 1
    due = _relative_variance(m.double()).repeat(4)
    z = relative.mean(0) / (due / COUNT).sqrt().clamp_min(1e-7)
    assert float(z.abs().max()) < 5
    error = relative.square()
    off = (error.mean(0) - due).abs() / (error.std(0) / sqrt(COUNT)).clamp_min(1e-7)
    assert float(off.max()) < 5
    assert float(error.mean(0).max()) < 0.125 * 1.1


def test_omega_is_attained_at_one_third_and_nowhere_exceeded() -> None:
    grid = torch.arange(1 << 16).double() / (1 << 16)
    due = _relative_variance(grid)
    assert float(due.max()) <= 0.125 and float(grid[due.argmax()]) == pytest.approx(1 / 3, abs=1e-4)
    omega = NATURAL.omega(1000)
    assert omega == 0.125
    x = torch.full((2000,), 4 / 3)
    error = (draws(NATURAL, x, 500).double() / x.double() - 1).square().mean()
    assert float(error) == pytest.approx(omega, rel=0.005)


def test_relative_variance_on_gaussian_data() -> None:
    """0.0817 for N(0, 1), by integration; 0.0815 to 0.0825 for other scales. One draw of one vector of 256 elements
    is off by 0.013: the published 0.087 is such a one."""
    x = torch.randn(2_000_000, generator=torch.Generator().manual_seed(7))
    error = trip(NATURAL, x).error.double().square().sum() / x.double().square().sum()
    assert float(error) == pytest.approx(0.08172, abs=0.0004)
    rows = x[: 512 * 256].view(512, 256)
    each = trip(NATURAL, rows.reshape(-1)).error.view(512, 256).double().square().sum(1) / rows.double().square().sum(1)
    assert float(each.std()) == pytest.approx(0.013, abs=0.002)


def test_denormals_go_to_zero_or_the_smallest_normal_number_without_bias() -> None:
    x = torch.tensor([0.25, 0.5, -0.75, 0.9]) * 2.0**-126
    sent = draws(NATURAL, x, COUNT).double() * 2.0**126
    assert set(sent.abs().unique().tolist()) == {0.0, 1.0}
    p = (x.double() * 2.0**126).abs()
    z = (sent.abs().mean(0) - p) / (p * (1 - p) / COUNT).sqrt()
    assert float(z.abs().max()) < 5


def test_nothing_becomes_infinite() -> None:
    """From 2^127 on the upper neighbour is infinite: where it is drawn, 2^127 is sent and the step is an overflow."""
    largest = torch.finfo(torch.float32).max
    for y in (torch.full((600,), largest), torch.full((70,), -largest)):
        t = trip(NATURAL, y)
        assert (t.value.abs() == 2.0**127).all() and torch.equal(t.error, y - t.value)
        assert t.payload.status[0] == 1
    fits = trip(NATURAL, torch.full((600,), 1.99 * 2.0**126))
    assert fits.payload.status[0] == 0 and fits.value.isfinite().all()
