"""QSGD in Elias codes equals its naive reference to the bit, whatever the form of the blocks."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import compcomm as cc

from . import elias
from .package import assert_equal, floats, philox_key, rngs, run

SIZES = {(None, 2): (1, 2), (1, None): (1, 2), (None, 3): (3, 3), (None, 4): (7, 4), (22, None): (22, 6)}


@settings(max_examples=60)
@given(
    floats(700), st.sampled_from([*SIZES, (None, 8)]), st.sampled_from([2.0, inf]),
    st.sampled_from(["stochastic", "nearest"]), st.sampled_from([16, 64, 512]), rngs, st.sampled_from([0, 16, 512]),
)  # fmt: skip
def test_elias(
    y: np.ndarray, size: tuple[int | None, int | None], norm: float, rounding: str, block: int, rng: cc.Rng, offset: int
) -> None:
    levels, bits = size
    c = cc.QSGD(bits=bits, levels=levels, norm=norm, rounding=rounding, block=block, coding="elias")
    s, width = SIZES.get(size, (127, 8))
    y = np.clip(y, -1e17, 1e17)  # sums of squares stay finite
    draw = (philox_key(rng), rng.step, rng.rank, offset) if rounding == "stochastic" else None
    section, value = elias.encode(y, s, width, norm == 2, block, draw)
    t = run(c, y, rng, offset)
    assert_equal(t, section, value)
    fixed = run(cc.QSGD(bits=bits, levels=levels, norm=norm, rounding=rounding, block=block), y, rng, offset)
    assert np.array_equal(t.value.numpy().view(np.int32), fixed.value.numpy().view(np.int32))
    assert np.array_equal(t.error.numpy().view(np.int32), fixed.error.numpy().view(np.int32))


@pytest.mark.parametrize("gap", [1, 2, 63, 64, 255, 256, 257, 4095, 4096, 70_000])
def test_long_gaps_and_large_levels(gap: int) -> None:
    """Words that are longer than any table: two elements far apart in one block."""
    y = np.zeros(gap + 300, np.float32)
    y[100], y[100 + gap] = -127.0, 64.0
    c = cc.QSGD(bits=8, rounding="nearest", block=80_000, coding="elias")
    section, value = elias.encode(y, 127, 8, False, 80_000, None)
    assert_equal(run(c, y, cc.Rng()), section, value)
    assert np.array_equal(value, y)
