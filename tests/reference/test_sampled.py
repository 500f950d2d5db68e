"""Sampled top-k equals its naive reference, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import compcomm as cc

from . import sampled, topk
from .package import assert_equal, floats, philox_key, rngs, run


@given(floats(), st.sampled_from([0.01, 0.1, 0.5, 1.0]), rngs, st.sampled_from([0, 16, 4096]))
def test_sampled(y: np.ndarray, ratio: float, rng: cc.Rng, offset: int) -> None:
    c = cc.TopK(ratio=ratio, select="sampled")
    k = c.kept(len(y))
    section = sampled.encode(y, k, sampled.kept(y, k, philox_key(rng), offset, rng.step, rng.rank))
    assert_equal(run(c, y, rng, offset), section, topk.decode(section, len(y), k))


@pytest.mark.parametrize("step", range(4))
def test_sampled_over_several_blocks_of_indices(step: int) -> None:
    y = np.random.default_rng(3).laplace(size=150_000).astype(np.float32)
    y[[0, 65_535, 65_536, 131_071, 131_072, 149_999]] = 100.0  # the corners of the blocks, and ties
    c, rng = cc.TopK(k=1001, select="sampled"), cc.Rng(step=step)
    section = sampled.encode(y, 1001, sampled.kept(y, 1001, philox_key(rng), 0, step, 0))
    assert_equal(run(c, y, rng), section, topk.decode(section, len(y), 1001))
