"""TwoMeans: its exact error, never above that of SignScale; its claims and its errors."""

from __future__ import annotations

from math import pi

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

import compcomm as cc
from compcomm.testing.inputs import vectors
from compcomm.testing.round_trip import trip
from tests.reference.package import floats

CODER = cc.TwoMeans(dense_below=1)


def _lost(c: cc.Compressor, x: Tensor) -> float:
    return float(trip(c, x).error.double().square().sum())


def _due(x: Tensor, block: int = 512) -> float:
    """The sum over blocks and parts of |x|^2 - (sum x)^2/n."""
    total = 0.0
    for part in x.double().split(block):
        for mine in (part[part < 0], part[part >= 0]):
            if len(mine):
                total += float(mine.square().sum() - mine.sum() ** 2 / len(mine))
    return total


@pytest.mark.parametrize("n", [1, 2, 17, 300, 1300])
def test_the_error_is_the_exact_one(n: int) -> None:
    for name, x in vectors(n).items():
        size = float(x.double().square().sum())
        assert _lost(CODER, x) == pytest.approx(_due(x), rel=1e-5, abs=1e-6 * size), name


@given(floats())
def test_never_worse_than_signs_with_one_scale(y: np.ndarray) -> None:
    y = np.clip(y, -1e17, 1e17)
    x = torch.from_numpy(y)
    ours, theirs = _lost(CODER, x), _lost(cc.SignScale(dense_below=1), x)
    assert ours <= theirs * (1 + 1e-6) + 1e-6 * float(x.double().square().sum())


def test_it_is_better_where_the_parts_differ() -> None:
    g = torch.Generator().manual_seed(0)
    normal = torch.randn(51_200, generator=g)
    size = float(normal.double().square().sum())
    assert _lost(CODER, normal) / size == pytest.approx(1 - 2 / pi, rel=0.01)
    shifted = normal.abs() - 0.1  # a few are negative, and small
    assert _lost(CODER, shifted) < 0.9 * _lost(cc.SignScale(dense_below=1), shifted)


def test_delta_is_attained() -> None:
    """One positive element among zeros, which are of its part; a negative one is alone, and exact."""
    for n in (2, 17, 512):
        x = torch.zeros(n)
        x[n // 2] = 3.0
        delta = CODER.delta(n)
        assert delta is not None and _lost(CODER, x) / 9 == pytest.approx(1 - delta, rel=1e-5)
        assert _lost(CODER, -x) == 0.0


def test_zero_of_either_sign_is_not_negative() -> None:
    t = trip(CODER, torch.tensor([-0.0, 0.0, -1.0, 2.0]))
    due = torch.tensor([2.0, 2.0, -3.0, 2.0]) / 3
    assert torch.allclose(t.value, due, rtol=1e-6)


def test_a_sum_that_overflows_is_flagged_and_stays() -> None:
    x = torch.tensor([3e38, 3e38, -1.0])
    t = trip(CODER, x)
    assert t.payload.status[0] == 1 and not t.value.any() and torch.equal(t.error, x)


def test_wrong_arguments_say_so() -> None:
    x, wire, status = torch.zeros(16), torch.zeros(64, dtype=torch.uint8), torch.zeros(2, dtype=torch.uint8)
    table, ops = torch.tensor([[0, -1, 16, 0, 0, 0, 0, 0]]), torch.ops.compcomm
    with pytest.raises(ValueError, match="multiple of 16"):
        ops.two_means_encode(x, None, wire, table, status, 1.0, 1.0, 24)
    with pytest.raises(ValueError, match="multiple of 16"):
        ops.two_means_decode(wire[None], table, status, x, 1.0, False, 0)
    with pytest.raises(ValueError, match="ends outside the wire"):
        ops.two_means_encode(x, None, wire[:11], table, status, 1.0, 1.0, 512)
    with pytest.raises(ValueError, match="ends outside messages"):
        ops.two_means_decode(wire[None, :11], table, status, x, 1.0, False, 512)
