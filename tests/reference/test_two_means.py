"""TwoMeans equals its naive reference, to the bit."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import compcomm as cc

from . import two_means
from .package import assert_equal, floats, run


@given(floats(), st.sampled_from([16, 64, 512]))
def test_two_means(y: np.ndarray, block: int) -> None:
    section = two_means.encode(y, block)
    assert_equal(run(cc.TwoMeans(block), y, cc.Rng()), section, two_means.decode(section, len(y), block))
