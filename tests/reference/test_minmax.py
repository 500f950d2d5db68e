"""MinMax equals its naive reference, to the bit."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import compcomm as cc

from . import minmax
from .package import assert_equal, floats, philox_key, rngs, run

offsets = st.sampled_from([0, 16, 128, 512, 4096 + 64])


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
def test_contractive_shrinks_both_ends(y: np.ndarray, rng: cc.Rng) -> None:
    inner = cc.MinMax(bits=3)
    omega = inner.omega(len(y))
    assert omega is not None
    section = minmax.encode(y, 3, 512, 1.0 / (1.0 + omega), (philox_key(rng), rng.step, rng.rank, 0))
    assert_equal(run(cc.Contractive(inner), y, rng), section, minmax.decode(section, len(y), 3, 512))
