"""Selections of approximate size equal their naive references."""

from __future__ import annotations

from math import isfinite

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import compcomm as cc

from . import sampled, threshold, topk
from .package import assert_equal, floats, philox_key, rngs, run

FITS = st.sampled_from(["exponential", "pareto", "gamma"])


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


@st.composite
def data(draw: st.DrawFn) -> np.ndarray:
    g = np.random.default_rng(draw(st.integers(0, 2**32)))
    n, scale = draw(st.integers(10, 2000)), 10.0 ** draw(st.integers(-8, 8))
    kind = draw(st.sampled_from(["normal", "laplace", "student"]))
    y = {"normal": g.standard_normal, "laplace": g.laplace, "student": lambda size: g.standard_t(3, size)}[kind](size=n)
    return (y * scale).astype(np.float32)


@settings(max_examples=150)
@given(
    data(), st.sampled_from([0.01, 0.05, 0.2, 0.4]), FITS, st.sampled_from([None, 1, 2]), st.sampled_from([1, 1.2, 3])
)
def test_threshold(y: np.ndarray, ratio: float, fit: str, stages: int | None, capacity: float) -> None:
    c = cc.Threshold(ratio=ratio, fit=fit, stages=stages, capacity=capacity)
    size = np.abs(y).astype(np.float64)
    found = threshold.thresholds(y, ratio, fit, stages or threshold.stages(ratio))
    for eta in found:
        assume(not isfinite(eta) or not bool((np.abs(size - eta) <= 1e-4 * eta).any()))
    room = c.kept(len(y))
    section = sampled.encode(y, room, threshold.kept(y, ratio, room, found[-1]))
    assert_equal(run(c, y, cc.Rng()), section, topk.decode(section, len(y), room))
