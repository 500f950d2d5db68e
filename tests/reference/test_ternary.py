"""TernGrad equals its naive reference, to the bit."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import compcomm as cc

from . import ternary
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
def test_contractive_shrinks_the_sizes(y: np.ndarray, rng: cc.Rng) -> None:
    inner = cc.TernGrad()
    omega = inner.omega(len(y))
    assert omega is not None
    section = ternary.encode(y, None, 512, 1.0 / (1.0 + omega), (philox_key(rng), rng.step, rng.rank, 0))
    assert_equal(run(cc.Contractive(inner), y, rng), section, ternary.decode(section, len(y), 512))
