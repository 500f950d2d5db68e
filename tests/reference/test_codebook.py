"""LloydMax and Grid equal the naive reference, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import compcomm as cc
from compcomm.compressors.codebook import Codebook

from . import codebook
from .package import assert_equal, floats, philox_key, rngs, run


def _compare(c: Codebook, y: np.ndarray, rng: cc.Rng, offset: int) -> None:
    bits, part = c.width
    books = [np.array(c.half(b) if b else (), np.float32) for b in (bits, bits + 1)[: 1 + (part > 0)]]
    place = (philox_key(rng), rng.step, offset)
    section = codebook.encode(y, books, bits, part, c.dot, c.block, place)
    due = codebook.decode(section, len(y), books, bits, part, c.block, place)
    assert_equal(run(c, y, rng, offset), section[: c.section(len(y))], due)


@settings(max_examples=60, deadline=None)
@given(
    floats(400), st.sampled_from([1, 2, 3, 4, 6, 8, 0.1, 0.5, 1.5, 2.25, 3.9, 7.5]), st.sampled_from(["mse", "dot"]),
    st.sampled_from([16, 48, 512]), rngs, st.sampled_from([0, 48, 480]),
)  # fmt: skip
def test_lloyd_max(y: np.ndarray, bits: float, scale: str, block: int, rng: cc.Rng, offset: int) -> None:
    if bits < 1 and scale == "dot":  # a window of tiny elements among others has a scale beyond fp32
        y = np.clip(y, -1e4, 1e4) + np.float32(1.0)
    _compare(cc.LloydMax(bits, scale, block), y, rng, offset)


@settings(max_examples=30, deadline=None)
@given(floats(400), st.integers(1, 8), st.sampled_from([16, 512]))
def test_grid(y: np.ndarray, bits: int, block: int) -> None:
    _compare(cc.Grid(bits, block), y, cc.Rng(), 0)


@pytest.mark.parametrize("exponent", (-149, -101, -100, -64, -41, -39, 0, 50, 62, 64, 100, 120))
@pytest.mark.parametrize("scale", ["mse", "dot"])
def test_codes_do_not_depend_on_the_unit(exponent: int, scale: str) -> None:
    """Multiplied by a power of two, a vector has the same codes and that multiple of the scale, to the ends of fp32."""
    y = np.random.default_rng(1).integers(-1, 2, 100).astype(np.float32)
    t, due = (run(cc.LloydMax(4, scale), z, cc.Rng()) for z in (y * np.float32(2.0**exponent), y))
    if exponent < -100:
        assert not t.value.any() and np.array_equal(t.error.numpy(), t.y.numpy())
    else:
        assert t.section.numpy().tobytes()[4:] == due.section.numpy().tobytes()[4:]
        assert np.array_equal(t.value.numpy(), due.value.numpy() * np.float32(2.0**exponent))


def test_a_scale_beyond_fp32_sends_nothing_and_says_so() -> None:
    t = run(cc.LloydMax(4), np.full(100, 2.0**127, np.float32), cc.Rng())
    assert t.payload.status[0] and not t.value.any() and np.array_equal(t.error.numpy(), t.y.numpy())
