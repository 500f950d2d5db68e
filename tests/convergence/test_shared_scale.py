"""SharedScale: integers are summed exactly, the mean is unbiased, and its variance is that of the shared step."""

from __future__ import annotations

from math import inf, sqrt

import pytest
import torch

import compcomm as cc
from compcomm.testing.conservation import remembered

SHAPE = (16, 64)


def given(world: int, seed: int = 0) -> list[torch.Tensor]:
    """Gradients of very different size: the last rank's is 100 times the first one's."""
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(SHAPE, generator=g) * 100.0 ** (r / max(1, world - 1)) for r in range(world)]


@pytest.mark.slow
@pytest.mark.parametrize("norm", [2, inf])
@pytest.mark.parametrize("world", [1, 2, 5])
def test_the_mean_is_unbiased_with_the_variance_of_the_shared_step(world: int, norm: float) -> None:
    """E out = mean, E|out - mean|^2 = (N/s)^2 sum over ranks of u(1 - u) / W^2, u = frac(s|x|/N), N of all ranks."""
    xs, s, block = given(world), 7, 64
    flat = torch.stack(xs).double().view(world, -1, block)
    norms = (flat.square().sum(2).sqrt() if norm == 2 else flat.abs().amax(2)).amax(0)
    u = (flat.abs() * s / norms[:, None]).frac()
    due = float(((norms[:, None] / s).square() * u * (1 - u)).sum()) / world**2
    simulator = cc.Simulator(cc.SharedScale(cc.QSGD(bits=4, norm=norm, block=block)), world)
    mean, draws = torch.stack(xs).double().mean(0), 600
    outs = torch.stack([simulator.mean([{"w": x} for x in xs])[0]["w"].double() for _ in range(draws)])
    errors = (outs - mean).square().sum((1, 2))
    assert float(errors.mean()) == pytest.approx(due, abs=5 * float(errors.std()) / sqrt(draws) + 1e-4 * due)
    for v in (torch.ones(SHAPE).double(), mean, mean.sign()):
        along = ((outs - mean) * v).sum((1, 2))
        assert abs(float(along.mean())) < 5 * float(along.std()) / sqrt(draws) + 1e-5 * float((mean * v).abs().sum())


@pytest.mark.parametrize("world", [2, 3, 16, 64])
def test_sums_are_exact_whatever_the_number_of_ranks(world: int) -> None:
    """Inputs on the levels: every rank at the largest code, or at the smallest, and the mean is exact."""
    s = 127
    top = torch.full(SHAPE, 3.0)
    mixed = (torch.arange(1024).view(SHAPE) % (2 * s + 1) - s).float()
    mixed[:, 0] = s
    for x in (top, -top, mixed):
        simulator = cc.Simulator(cc.SharedScale(cc.QSGD(bits=8, rounding="nearest", block=64)), world)
        out = simulator.mean([{"w": x}] * world)[0]["w"]
        assert torch.allclose(out, x, rtol=1e-6, atol=1e-6)
        assert not cc.cost(cc.SharedScale(cc.QSGD(bits=8)), cc.Layout.of([("w", SHAPE)]), 1).sent


@pytest.mark.parametrize(("world", "bits"), [(2, 32 / 6), (4, 32 / 5), (16, 8), (64, 32 / 3)])
def test_bits_per_element(world: int, bits: float) -> None:
    """floor(32 / bit_length(2 s W)) codes share a word, and a block of 512 shares a norm."""
    layout = cc.Layout.of([("w", (1000, 1024))])
    sent = cc.cost(cc.SharedScale(cc.QSGD(bits=4)), layout, world).sent
    due = layout.numel * (bits + 32 / 512) / 8 * 2 * (world - 1) / world
    assert sent == pytest.approx(due, rel=1e-3)


def test_feedback_takes_the_aggregate_contraction_and_refuses_the_rest() -> None:
    """With max norm and rounding to nearest, sum of |x_r - C(x_r)|^2 < sum of |x_r|^2, and nothing is lost."""
    for refused in (cc.QSGD(bits=4), cc.QSGD(bits=4, norm=2, rounding="nearest")):
        with pytest.raises(ValueError, match=r"Use SharedScale\(QSGD\(bits=4, rounding='nearest'\)\)"):
            cc.ErrorFeedback(cc.SharedScale(refused))
    simulator = cc.Simulator(cc.ErrorFeedback(cc.SharedScale(cc.QSGD(bits=3, rounding="nearest"))), 3)
    applied = torch.zeros(SHAPE, dtype=torch.float64)
    due = torch.zeros(SHAPE, dtype=torch.float64)
    largest = 0.0
    for t in range(300):
        xs = given(3, t)
        applied += simulator.mean([{"w": x} for x in xs])[0]["w"]
        due += torch.stack(xs).double().mean(0)
        residuals = [store.state_dict()["residual"]["w"] for store in simulator.stores]
        largest = max(largest, *(float(r.abs().max()) for r in residuals))
    assert torch.allclose(applied + remembered(simulator, "w", SHAPE), due, rtol=0, atol=1e-2)
    assert largest < 2 * 500 / (2 * 3), "an error stays below half a step of the largest norm"


def test_only_what_has_equal_levels_shares_a_scale() -> None:
    codes = cc.QSGD(bits=4, coding="elias")
    for compressor in (cc.TopK(ratio=0.1), cc.SignScale(), cc.Cast(torch.bfloat16), cc.TernGrad(clip=2.5), codes):
        with pytest.raises(ValueError, match=r"not equally spaced.*Use SharedScale\(QSGD\(bits=4\)\)"):
            cc.SharedScale(compressor)


def test_a_mean_that_fits_is_finite() -> None:
    """The sum of two numbers of 3e38 does not fit fp32, their mean does."""
    x = torch.full(SHAPE, 3e38)
    simulator = cc.Simulator(cc.SharedScale(cc.QSGD(bits=8, rounding="nearest", block=64)), 2)
    assert torch.allclose(simulator.mean([{"w": x}] * 2)[0]["w"], x) and not simulator.bad
