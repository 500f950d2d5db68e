"""The package's side of a comparison: one parameter, or a piece of one, through the real thing."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import compcomm as cc
from compcomm.core.random import key
from compcomm.testing.inputs import coding
from compcomm.testing.round_trip import Trip, trip

NAME = "layer.weight"


def run(c: cc.Compressor, y: np.ndarray, rng: cc.Rng, offset: int = 0) -> Trip:
    """Elements ``offset`` .. of a parameter, coded and decoded."""
    n = len(y)
    piece = cc.Segment(NAME, (1, offset + n), 0, n, offset)
    return trip(coding(c), torch.from_numpy(y.copy()), rng, piece=piece)


def philox_key(rng: cc.Rng) -> int:
    """The 64-bit key of the parameter, as an unsigned number."""
    return key(rng.seed, NAME) % 2**64


def assert_equal(t: Trip, section: bytes, value: np.ndarray) -> None:
    """Bytes, decoded numbers and the error, to the bit (either zero will do)."""
    assert t.section.numpy().tobytes() == section
    assert np.array_equal(t.value.numpy(), value)
    assert np.array_equal(t.error.numpy(), t.y.numpy() - value)


@st.composite
def floats(draw: st.DrawFn, largest: int = 1100) -> np.ndarray:
    """Vectors of any size up to ``largest``: normal numbers of one scale, or whatever hypothesis finds amusing."""
    n = draw(st.integers(1, largest))
    if draw(st.booleans()):
        scale = 10.0 ** draw(st.integers(-30, 30))
        generator = np.random.default_rng(draw(st.integers(0, 2**32)))
        y = generator.standard_normal(n) * scale
        y[generator.random(n) < draw(st.sampled_from([0.0, 0.5]))] = 0.0
        return y.astype(np.float32)
    element = st.floats(-(2.0**100), 2.0**100, width=32)
    return draw(arrays.arrays(np.float32, n, elements=element, fill=st.sampled_from([0.0, -0.0, 1.0])))


rngs = st.builds(cc.Rng, st.integers(-(2**62), 2**62), st.integers(0, 2**40), st.integers(-5, 300))
