"""What sparsifiers lose: identities that hold for every vector, and equalities in expectation."""

from __future__ import annotations

from math import sqrt

import pytest
import torch

import compcomm as cc
from compcomm.testing.inputs import vectors
from compcomm.testing.round_trip import draws, trip

D = 300


@pytest.mark.parametrize("kind", ["gaussian", "student-t", "lognormal", "constant", "alternating", "1-sparse"])
@pytest.mark.parametrize("ratio", [0.01, 0.1, 1.0])
def test_top_k_splits_the_norm(kind: str, ratio: float) -> None:
    """|x - C(x)|^2 = |x|^2 - |C(x)|^2 <= (1 - k/d)|x|^2, with equality where all |x_j| are equal."""
    x = vectors(D)[kind]
    c = cc.TopK(ratio=ratio, dense_below=1)
    t = trip(c, x)
    error, value, whole = (float(v.double().square().sum()) for v in (t.error, t.value, x))
    k = c.kept(D)
    assert error + value == pytest.approx(whole, rel=1e-12)
    assert error <= (1 - k / D) * whole * (1 + 1e-12)
    if kind in ("constant", "alternating"):
        assert error == pytest.approx((1 - k / D) * whole, rel=1e-9)
        assert t.value[:k].all() and not t.value[k:].any(), "of equals the first are kept"


@pytest.mark.parametrize("k", [1, 30, 150])
def test_rand_k_loses_its_share(k: int) -> None:
    """E|x - C(x)|^2 = (1 - k/d)|x|^2, or (d/k - 1)|x|^2 in the unbiased form; the rank has no part in the mask."""
    x = vectors(D)["gaussian"]
    size = float(x.double().square().sum())
    for c, due in ((cc.RandK(k=k, dense_below=1), 1 - k / D), (cc.RandK(k=k, unbiased=True, dense_below=1), D / k - 1)):
        errors = (draws(c, x, 4000).double() - x.double()).square().sum(1) / size
        assert float(errors.mean()) == pytest.approx(due, abs=5 * float(errors.std()) / sqrt(4000))
        assert torch.equal(trip(c, x, cc.Rng(rank=0)).value, trip(c, x, cc.Rng(rank=5)).value)


def test_every_element_is_drawn_as_often() -> None:
    """4000 masks of 30 among 300: each element is kept 400 times, give or take five standard deviations."""
    kept = (draws(cc.RandK(k=30, dense_below=1), torch.ones(D), 4000) != 0).sum(0)
    assert int(kept.sum()) == 4000 * 30
    assert float((kept - 400).abs().max()) <= 5 * sqrt(4000 * 0.1 * 0.9)


def test_a_shrunken_compressor_is_a_contraction() -> None:
    """C/(1 + omega) of rand-k is rand-k in its biased form: the factor d/k is taken back."""
    x = vectors(D)["gaussian"]
    a = trip(cc.Contractive(cc.RandK(k=30, unbiased=True, dense_below=1)), x).value
    b = trip(cc.RandK(k=30, dense_below=1), x).value
    assert torch.allclose(a, b, rtol=1e-6, atol=0)
