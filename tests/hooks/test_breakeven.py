"""Predictions before the first step."""

from __future__ import annotations

from math import prod

import pytest

import compcomm as cc
from compcomm.plan.breakeven import Breakeven, breakeven
from compcomm.testing.shapes import resnet50


def test_break_even_is_where_seconds_are_equal() -> None:
    found = Breakeven(sent=25_000_000, dense=100_000_000, seconds=0.1)
    assert found.ratio == 4
    rate = found.bits_per_second
    assert found.dense * 8 / rate == pytest.approx(found.sent * 8 / rate + found.seconds)
    assert rate == pytest.approx((1 - 1 / found.ratio) * found.dense * 8 / found.seconds)


@pytest.mark.parametrize("world", [2, 4, 64])
def test_bytes_are_those_of_the_dry_run(world: int) -> None:
    layout = cc.Layout.of(resnet50(16, 100))
    reducer = cc.settle(cc.ErrorFeedback(cc.TopK(ratio=0.01)), world)
    found = breakeven(reducer, layout, world)
    assert (found.sent, found.dense) == cc.cost(reducer, layout, world)[:2]
    assert 1e-6 < found.seconds < 10
    assert breakeven(cc.Exact(), layout, world).seconds == 0


def test_resnet50_is_resnet50() -> None:
    shapes = resnet50()
    assert len(shapes) == len({n for n, _ in shapes}) == 161
    assert sum(prod(s) for _, s in shapes) == 25_557_032
    assert len(resnet50(16)) == 161
