"""Threshold equals its naive reference wherever no element lies so near a threshold that rounding decides."""

from __future__ import annotations

from math import isfinite

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import compcomm as cc

from . import sampled, threshold, topk
from .package import assert_equal, run

FITS = st.sampled_from(["exponential", "pareto", "gamma"])


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
