"""Sketches equal their naive reference, to the bit. ("srht" is a rotated rand-k: test_rotated.py.)"""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import compcomm as cc
from compcomm.compressors.sketch import quantiles

from . import sketch
from .package import assert_equal, floats, philox_key, rngs, run

offsets = st.sampled_from([0, 16, 4096 + 77])
TABLE = sketch.quantiles()


@settings(max_examples=60)
@given(floats(500), st.sampled_from([0.01, 0.2, 1.0]), rngs, offsets)
def test_count(y: np.ndarray, ratio: float, rng: cc.Rng, offset: int) -> None:
    y = np.clip(y, -1e17, 1e17)
    c = cc.Sketch(ratio=ratio, kind="count")
    s, place = c.kept(len(y)), (philox_key(rng), rng.step, offset)
    section = sketch.count_encode(y, s, *place)
    assert_equal(run(c, y, rng, offset), section, sketch.count_decode(section, len(y), s, *place))


@settings(max_examples=20)
@given(floats(90), st.sampled_from([0.01, 0.2]), rngs, offsets)
def test_gaussian(y: np.ndarray, ratio: float, rng: cc.Rng, offset: int) -> None:
    y = np.clip(y, -1e17, 1e17)
    c = cc.Sketch(ratio=ratio, kind="gaussian")
    t = sketch.matrix(philox_key(rng), rng.step, offset, len(y), c.kept(len(y)), TABLE)
    section = sketch.gauss_encode(y, t)
    assert_equal(run(c, y, rng, offset), section, sketch.gauss_decode(section, t))


def test_the_quantiles_are_the_same_on_every_machine() -> None:
    """Another implementation of the normal quantile gives the same bits, and none is near a tie of the rounding."""
    from scipy.special import ndtri

    assert torch.equal(quantiles(), torch.from_numpy(TABLE))
    exact = ndtri((np.arange(65536) + 0.5) / 65536) * 2**14
    assert np.abs(exact - np.floor(exact) - 0.5).min() > 1e-7
    assert torch.equal(quantiles(), -quantiles().flip(0))
