"""Unproven: feedback takes what promises no contraction: nothing is lost, and the error may exceed the input."""

from __future__ import annotations

from math import sqrt

import pytest
import torch

import compcomm as cc
from compcomm.compressors.contractive import contractive
from compcomm.testing.round_trip import trip

L2 = cc.Unproven(cc.SignScale(scale="l2"))


def test_it_is_the_compressor_that_it_holds() -> None:
    c = L2.compressor
    x = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(trip(L2, x).value, trip(c, x).value) and torch.equal(trip(L2, x).error, trip(c, x).error)
    assert L2.section(5000) == c.section(5000) and L2.alignment == c.alignment and contractive(L2, "EF21") is L2
    assert L2.delta(5000) is None and L2.omega(5000) is None and not L2.unbiased
    assert cc.parse(repr(L2)) == L2
    assert cc.Unproven(cc.Cast(torch.float16, 0)).exact(cc.Segment("b", (7,), 0, 7)) is False


def test_where_it_runs() -> None:
    settled = cc.settle(cc.ErrorFeedback(L2), 4)
    assert settled == cc.ErrorFeedback(cc.TwoPhase(L2, server=cc.ErrorFeedback))
    assert cc.settle(cc.ErrorFeedback(L2), 2) == cc.ErrorFeedback(cc.AllGather(L2))
    cc.TwoPhase(L2, server=cc.ErrorFeedback)
    with pytest.raises(ValueError, match="Use SignScale"):
        cc.ErrorFeedback(L2.compressor)
    with pytest.raises(ValueError, match="Use Unproven around the whole of it"):
        cc.ErrorFeedback(cc.Rotated(L2))
    with pytest.raises(ValueError, match="Give eta="):
        cc.settle(cc.EControl(L2), 4)


def test_why_it_is_unproven() -> None:
    """|x - C(x)|^2 = 2|x|^2 (1 - |x|_1/(sqrt(n)|x|)) under the l2 scale: nearly 2|x|^2 on sparse x."""
    coded = cc.Unproven(cc.SignScale(scale="l2", dense_below=0))
    for n, nonzero in ((512, 1), (512, 4), (16, 1), (512, 512)):
        x = torch.zeros(n)
        x[:nonzero] = torch.linspace(1.0, 2.0, nonzero)
        error = float(trip(coded, x).error.double().square().sum())
        size = float(x.double().square().sum())
        due = 2 * size * (1 - float(x.double().abs().sum()) / sqrt(n * size))
        assert error == pytest.approx(due, rel=1e-4)
        assert (error > size) is (nonzero < 5)
