"""Rotated equals its naive reference, to the bit, around three different quantisers."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import compcomm as cc

from . import qsgd, randk, rotated, sign
from .package import assert_equal, floats, philox_key, rngs, run

blocks = st.sampled_from([16, 64, 512, 4096])
offsets = st.sampled_from([0, 4096, 3 * 4096])


@settings(max_examples=60)
@given(floats(700), blocks, rngs, offsets)
def test_rotated_signs(y: np.ndarray, block: int, rng: cc.Rng, offset: int) -> None:
    y = np.clip(y, -1e17, 1e17)
    s = rotated.signs(philox_key(rng), offset, len(y), rng.step)
    section = sign.encode(rotated.rotate(y, block, s), "l1", 128)
    value = rotated.rotate_back(sign.decode(section, len(y), 128), block, s)
    assert_equal(run(cc.Rotated(cc.SignScale(block=128), block), y, rng, offset), section, value)


@settings(max_examples=60)
@given(floats(700), blocks, rngs, offsets)
def test_rotated_qsgd_draws_its_noise_as_ever(y: np.ndarray, block: int, rng: cc.Rng, offset: int) -> None:
    y = np.clip(y, -1e17, 1e17)
    s = rotated.signs(philox_key(rng), offset, len(y), rng.step)
    draw = (philox_key(rng), rng.step, rng.rank, offset)
    section = qsgd.encode(rotated.rotate(y, block, s), 7, 4, False, 64, 1.0, draw)
    value = rotated.rotate_back(qsgd.decode(section, len(y), 7, 4, 64), block, s)
    assert_equal(run(cc.Rotated(cc.QSGD(bits=4, block=64), block), y, rng, offset), section, value)


@settings(max_examples=60)
@given(floats(700), blocks, rngs, offsets)
def test_rotated_randk_is_the_subsampled_transform(y: np.ndarray, block: int, rng: cc.Rng, offset: int) -> None:
    y = np.clip(y, -1e17, 1e17)
    c = cc.Rotated(cc.RandK(ratio=0.3, unbiased=True), block)
    k, n = c.kept(len(y)), len(y)
    place = (philox_key(rng), offset, rng.step)
    s = rotated.signs(philox_key(rng), offset, n, rng.step)
    section = randk.encode(rotated.rotate(y, block, s), k, c.gain(n), *place)
    value = rotated.rotate_back(randk.decode(section, n, k, *place), block, s)
    assert_equal(run(c, y, rng, offset), section, value)
