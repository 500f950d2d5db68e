"""Wrong arguments of Cast to 8 bits and of Natural: refused, with the call, the value, the reason and the cure."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import compcomm as cc

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: cc.Cast(torch.float32), ["float32", "torch.float8_e4m3fn", "torch.float8_e5m2", "torch.bfloat16"]),
        (lambda: cc.Cast(torch.float8_e4m3fnuz), ["float8_e4m3fnuz", "torch.float8_e4m3fn"]),
        (lambda: cc.Cast(E4M3, block=100), ["Cast(float8_e4m3fn, block=100)", "multiple of 16"]),
        (lambda: cc.Cast(torch.bfloat16, block=64), ["Cast(bfloat16, block=64)", "no block", "Leave it out"]),
        (lambda: cc.AllReduce(cc.Cast(E5M2)), ["AllReduce(Cast(float8_e5m2))", "cannot be summed", "TwoPhase"]),
        (lambda: cc.Natural(bits=1), ["Natural(bits=1)", "2 to 9", "Use Cast(bfloat16)"]),
        (lambda: cc.Natural(bits=10), ["Natural(bits=10)", "2 to 9"]),
        (lambda: cc.Natural(bits=4.0), ["Natural(bits=4.0)", "2 to 9"]),
        (lambda: cc.Natural(bits=True), ["bits=True", "2 to 9"]),
        (lambda: cc.Natural(bits=4, norm=1), ["norm=1", "neither 2 nor inf"]),
        (lambda: cc.Natural(norm=2), ["Natural(norm=2)", "need no norm", "Leave it out"]),
        (lambda: cc.Natural(block=64), ["Natural(block=64)", "need no block"]),
        (lambda: cc.Natural(bits=4, block=100), ["block=100", "multiple of 16"]),
        (lambda: cc.Natural(dense_below=-1), ["dense_below=-1"]),
        (lambda: cc.AllReduce(cc.Natural()), ["AllReduce(Natural())", "cannot be summed"]),
    ],
)
def test_construction(make: Callable[[], object], parts: list[str]) -> None:
    with pytest.raises(ValueError) as refusal:
        make()
    assert all(part in str(refusal.value) for part in parts), refusal.value


@pytest.mark.parametrize("to", [E4M3, E5M2])
def test_routes_and_feedback(to: torch.dtype) -> None:
    c = cc.Cast(to, block=64)
    assert cc.parse(repr(c)) == c
    assert isinstance(cc.settle(c, 2), cc.AllGather) and isinstance(cc.settle(c, 8), cc.TwoPhase)
    assert cc.ErrorFeedback(c).reducer == c
    assert not c.linear and cc.Cast(torch.bfloat16).linear


def test_feedback_takes_it_as_it_is_or_shrinks_it() -> None:
    assert cc.ErrorFeedback(cc.Natural()).reducer == cc.Natural()
    assert cc.ErrorFeedback(cc.Natural(bits=4)).reducer == cc.Natural(bits=4)
    assert cc.ErrorFeedback(cc.Natural(bits=3)).reducer == cc.Contractive(cc.Natural(bits=3))
