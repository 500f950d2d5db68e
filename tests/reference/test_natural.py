"""Natural compression and natural dithering equal their naive references, to the bit."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import compcomm as cc

from . import natural, natural_dither
from .package import assert_equal, floats, philox_key, rngs, run

offsets = st.sampled_from([0, 16, 128, 512, 4096 + 64])


@given(floats(700), rngs, offsets)
def test_nine_bits(y: np.ndarray, rng: cc.Rng, offset: int) -> None:
    section = natural.encode(y, 1.0, (philox_key(rng), rng.step, rng.rank, offset))
    assert_equal(run(cc.Natural(), y, rng, offset), section, natural.decode(section, len(y)))


@given(floats(300), rngs)
def test_contractive_shrinks_before_rounding(y: np.ndarray, rng: cc.Rng) -> None:
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
def test_the_smallest_numbers(scale: float) -> None:
    y = (np.random.default_rng(5).standard_normal(600) * 50 * scale).astype(np.float32)
    rng = cc.Rng(seed=3, step=1)
    section = natural.encode(y, 1.0, (philox_key(rng), 1, 0, 0))
    assert_equal(run(cc.Natural(), y, rng), section, natural.decode(section, len(y)))
