"""Quantisers of few levels equal their naive references, to the bit."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import compcomm as cc

from . import minmax, natural, natural_dither, ternary, two_means
from .package import assert_equal, floats, philox_key, rngs, run

offsets = st.sampled_from([0, 16, 128, 512, 4096 + 64])


@settings(max_examples=60)
@given(floats(700), st.sampled_from([None, 1.0, 2.1, 2.5]), st.sampled_from([16, 80, 512]), rngs, offsets)
def test_terngrad(y: np.ndarray, clip: float | None, block: int, rng: cc.Rng, offset: int) -> None:
    y = np.clip(y, -1e17, 1e17)  # sums of squares stay finite
    section = ternary.encode(y, clip, block, 1.0, (philox_key(rng), rng.step, rng.rank, offset))
    found = run(cc.TernGrad(clip, block), y, rng, offset)
    assert_equal(found, section, ternary.decode(section, len(y), block))


@given(floats(700), rngs)
def test_contractive_terngrad_shrinks_the_sizes(y: np.ndarray, rng: cc.Rng) -> None:
    inner = cc.TernGrad()
    omega = inner.omega(len(y))
    assert omega is not None
    section = ternary.encode(y, None, 512, 1.0 / (1.0 + omega), (philox_key(rng), rng.step, rng.rank, 0))
    assert_equal(run(cc.Contractive(inner), y, rng), section, ternary.decode(section, len(y), 512))


@given(floats(), st.sampled_from([16, 64, 512]))
def test_two_means(y: np.ndarray, block: int) -> None:
    section = two_means.encode(y, block)
    assert_equal(run(cc.TwoMeans(block), y, cc.Rng()), section, two_means.decode(section, len(y), block))


@settings(max_examples=60)
@given(
    floats(700), st.integers(1, 8), st.sampled_from(["stochastic", "nearest"]), st.sampled_from([16, 64, 512]),
    rngs, offsets, st.sampled_from([0.0, 1.0, -30.0]),
)  # fmt: skip
def test_minmax(y: np.ndarray, bits: int, rounding: str, block: int, rng: cc.Rng, offset: int, shift: float) -> None:
    y = y + np.float32(shift)  # blocks of one sign, whose range is small beside their elements
    draw = (philox_key(rng), rng.step, rng.rank, offset) if rounding == "stochastic" else None
    section = minmax.encode(y, bits, block, 1.0, draw)
    found = run(cc.MinMax(bits, rounding, block), y, rng, offset)
    assert_equal(found, section, minmax.decode(section, len(y), bits, block))


@given(floats(700), rngs)
def test_contractive_minmax_shrinks_both_ends(y: np.ndarray, rng: cc.Rng) -> None:
    inner = cc.MinMax(bits=3)
    omega = inner.omega(len(y))
    assert omega is not None
    section = minmax.encode(y, 3, 512, 1.0 / (1.0 + omega), (philox_key(rng), rng.step, rng.rank, 0))
    assert_equal(run(cc.Contractive(inner), y, rng), section, minmax.decode(section, len(y), 3, 512))


@given(floats(700), rngs, offsets)
def test_natural_of_nine_bits(y: np.ndarray, rng: cc.Rng, offset: int) -> None:
    section = natural.encode(y, 1.0, (philox_key(rng), rng.step, rng.rank, offset))
    assert_equal(run(cc.Natural(), y, rng, offset), section, natural.decode(section, len(y)))


@given(floats(300), rngs)
def test_contractive_natural_shrinks_before_rounding(y: np.ndarray, rng: cc.Rng) -> None:
    """C(y/(1 + omega)) has the mean of C(y)/(1 + omega), and no more variance; a power of two cannot be scaled."""
    section = natural.encode(y, 1 / 1.125, (philox_key(rng), rng.step, rng.rank, 0))
    assert_equal(run(cc.Contractive(cc.Natural()), y, rng), section, natural.decode(section, len(y)))


@given(
    floats(700), st.integers(2, 8), st.sampled_from([2.0, inf]), st.sampled_from([16, 64, 512]), st.booleans(), rngs,
    offsets,
)  # fmt: skip
def test_dithering(y: np.ndarray, bits: int, norm: float, block: int, shrunk: bool, rng: cc.Rng, offset: int) -> None:
    y = np.clip(y, -1e17, 1e17)  # sums of squares stay finite
    c: cc.Compressor = cc.Natural(bits, norm, block)
    c = cc.Contractive(c) if shrunk else c
    draw = (philox_key(rng), rng.step, rng.rank, offset)
    section = natural_dither.encode(y, bits, norm == 2, block, c.gain(len(y)), draw)
    assert_equal(run(c, y, rng, offset), section, natural_dither.decode(section, len(y), bits, block))


@pytest.mark.parametrize("scale", [2.0**-149, 2.0**-140, 2.0**-127, 2.0**-126])
def test_the_smallest_numbers_of_natural(scale: float) -> None:
    y = (np.random.default_rng(5).standard_normal(600) * 50 * scale).astype(np.float32)
    rng = cc.Rng(seed=3, step=1)
    section = natural.encode(y, 1.0, (philox_key(rng), 1, 0, 0))
    assert_equal(run(cc.Natural(), y, rng), section, natural.decode(section, len(y)))
