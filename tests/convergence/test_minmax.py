"""MinMax: its exact variance, exact extremes, and that coding twice loses no more than coding once."""

from __future__ import annotations

from math import sqrt

import pytest
import torch
from torch import Tensor

import compcomm as cc
from compcomm.testing.inputs import vectors
from compcomm.testing.round_trip import draws, trip
from tests.ops.sparse_case import using

D = 256
KINDS = tuple(vectors(16))


def _coder(bits: int, rounding: str = "stochastic", block: int = D) -> cc.MinMax:
    return cc.MinMax(bits, rounding, block, dense_below=1)


def _variance(x: Tensor, bits: int) -> float:
    """u^2 sum f (1 - f), f the fractional part of (x - min)/u."""
    x = x.double()
    u = (x.max() - x.min()) / (2**bits - 1)
    f = ((x - x.min()) / u).frac()
    f[x == x.max()] = 0.0
    return float(u**2 * (f * (1 - f)).sum())


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", ["gaussian", "student-t", "lognormal"])
def test_the_variance_is_the_exact_one(bits: int, kind: str) -> None:
    x = vectors(D, 3)[kind]
    errors = (draws(_coder(bits), x, 4000).double() - x.double()).square().sum(1)
    due = _variance(x, bits)
    assert float(errors.mean()) == pytest.approx(due, abs=5 * float(errors.std()) / sqrt(4000))


@pytest.mark.parametrize("bits", [1, 3, 4])
@pytest.mark.parametrize("n", [3, 16, 512])
def test_omega_is_attained(bits: int, n: int) -> None:
    """Extremes at -1 and 1, zeros between: the number of levels is even, so zero lies half-way between two."""
    x = torch.zeros(n)
    x[0], x[-1] = -1.0, 1.0
    omega = _coder(bits, block=512).omega(n)
    assert omega == pytest.approx(_variance(x, bits) / 2, rel=1e-9)
    lost = trip(_coder(bits, "nearest", 512), x).error.double().square().sum() / 2
    assert float(lost) == pytest.approx(omega, rel=1e-5)


@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
@pytest.mark.parametrize("bits", range(1, 9))
def test_extremes_and_constants_are_exact(bits: int, rounding: str) -> None:
    for name, x in vectors(700, 2).items():
        value = trip(_coder(bits, rounding), x).value
        for part, sent in zip(x.split(D), value.split(D), strict=True):
            ends = (part == part.min()) | (part == part.max())
            assert torch.equal(sent[ends], part[ends]), name
    for constant in (0.0, -0.0, 0.3, -7.0, 1e-41, 3e38):
        for n in (1, 2, 17, 300):
            t = trip(_coder(bits, rounding), torch.full((n,), constant))
            assert torch.equal(t.value, t.y) and not t.error.any()


@pytest.mark.turns(2)
@pytest.mark.slow
@pytest.mark.parametrize("backend", ["reference", "baseline", "avx2", "avx512"])
@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
@pytest.mark.parametrize("bits", range(1, 9))
def test_coding_what_was_decoded_changes_nothing(bits: int, rounding: str, backend: str) -> None:
    """Whatever the dithers, and also where the levels are closer than neighbouring numbers."""
    first, again = cc.Rng(seed=1), cc.Rng(seed=2, step=5)
    kinds = vectors(1100, 1)
    g = torch.Generator().manual_seed(3)
    for spread in (1e-7, 3e-7, 1e-6, 3e-6, 1e-5, 1e-3, 1.0):
        kinds[f"one and {spread}"] = 1.0 + spread * torch.randn(1100, generator=g)
    with using(backend):
        for name, x in kinds.items():
            once = trip(_coder(bits, rounding), x, first).value
            for seed in range(3):
                twice = trip(_coder(bits, rounding), once, again._replace(seed=seed))
                assert torch.equal(twice.value, once) and not twice.error.any(), name


def test_nearest_is_within_half_a_level() -> None:
    for bits in range(1, 9):
        for name, x in vectors(D, 4).items():
            u = float(x.double().max() - x.double().min()) / (2**bits - 1)
            worst = float(trip(_coder(bits, "nearest"), x).error.abs().max())
            assert worst <= u * (0.5 + 1e-4) + 1e-6 * float(x.abs().max()), name


def test_what_cannot_be_scaled_stays_and_is_flagged() -> None:
    for rounding in ("stochastic", "nearest"):
        x = torch.tensor([3e38, -3e38, 1.0])
        t = trip(_coder(4, rounding), x)
        assert t.payload.status[0] == 1 and not t.value.any() and torch.equal(t.error, x)
        t = trip(_coder(4, rounding), torch.tensor([3e38, 1e38, 2e38]))  # of one sign: the range is finite
        assert t.payload.status[0] == 0 and torch.equal(t.value[:2], t.y[:2])
    tiny = torch.tensor([1.0, -1.0, 3.0]) * 2.0**-103
    assert torch.equal(trip(_coder(4), tiny).value, tiny.min().expand(3))


def test_wrong_arguments_say_so() -> None:
    for arguments, reason in (
        ({"bits": 0}, "1 to 8"),
        ({"bits": 9}, "Use Cast"),
        ({"bits": 2.5}, "1 to 8"),
        ({"bits": 4, "rounding": "up"}, "neither 'stochastic' nor 'nearest'"),
        ({"bits": 4, "block": 40}, "multiple of 16"),
        ({"bits": 4, "dense_below": -1}, "dense_below"),
    ):
        with pytest.raises(ValueError, match=reason):
            cc.MinMax(**arguments)
    with pytest.raises(ValueError, match="Use rounding='stochastic'"):
        cc.ErrorFeedback(cc.MinMax(4, "nearest"))
    assert repr(cc.ErrorFeedback(cc.MinMax(4))) == "ErrorFeedback(Contractive(MinMax(4)))"


def test_wrong_arguments_of_the_ops() -> None:
    x, wire, status = torch.zeros(16), torch.zeros(64, dtype=torch.uint8), torch.zeros(2, dtype=torch.uint8)
    table, ops = torch.tensor([[0, -1, 16, 0, 0, 0, 0, 0]]), torch.ops.compcomm
    for bits, block, gain, reason in (
        (0, 512, 1, "1 to 8 bits"), (9, 512, 1, "1 to 8 bits"), (4, 24, 1, "multiple of 16"), (4, 512, 2, "gain has 2"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=reason):
            ops.minmax_encode(x, None, wire, table, status, 1.0, 1.0, torch.ones(gain), bits, True, block, 0, 0)
        if gain == 1:
            with pytest.raises(ValueError, match=reason):
                ops.minmax_decode(wire.unsqueeze(0), table, status, x, 1.0, False, bits, block)
    with pytest.raises(ValueError, match="ends outside the wire"):
        ops.minmax_encode(x, None, wire[:15], table, status, 1.0, 1.0, torch.ones(1), 4, True, 512, 0, 0)
    with pytest.raises(ValueError, match="ends outside messages"):
        ops.minmax_decode(wire[None, :15], table, status, x, 1.0, False, 4, 512)
