"""Natural compression equals its naive reference, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import compcomm as cc

from . import natural
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


@pytest.mark.parametrize("scale", [2.0**-149, 2.0**-140, 2.0**-127, 2.0**-126])
def test_the_smallest_numbers(scale: float) -> None:
    y = (np.random.default_rng(5).standard_normal(600) * 50 * scale).astype(np.float32)
    rng = cc.Rng(seed=3, step=1)
    section = natural.encode(y, 1.0, (philox_key(rng), 1, 0, 0))
    assert_equal(run(cc.Natural(), y, rng), section, natural.decode(section, len(y)))
