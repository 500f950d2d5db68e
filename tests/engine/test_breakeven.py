"""Predictions before the first step."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest

import compcomm as cc
from compcomm.core.rows import Inputs
from compcomm.engine.breakeven import Breakeven, breakeven
from compcomm.engine.sample import sample_layout
from compcomm.hosts.announce import announce
from compcomm.plan.shapes import resnet50


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


def matrices(text: str, *shapes: tuple[str, tuple[int, ...]]) -> tuple[cc.Reducer, cc.Layout]:
    return cc.settle(cc.parse(text), 2), cc.Layout.of(shapes)


def test_a_fixed_k_is_sampled_where_it_fits() -> None:
    for k in (10_000, 300_000):
        reducer, layout = matrices(f"TopK(k={k})", ("w", (20_000, 50)), ("big", (5_000, 1_000)))
        assert breakeven(reducer, layout, 2).seconds > 0
        sample = sample_layout(reducer, layout, 2, 1 << 18)
        assert all(k <= s.numel for s in sample.segments)


@pytest.mark.parametrize(
    "text", ["QSGD(bits=4)", "ErrorFeedback(TopK(ratio=0.01))", "TopK(ratio=0.1, dense_below=99999)"]
)
def test_a_sample_codes_what_the_model_codes(text: str) -> None:
    reducer, layout = matrices(text, *((f"{i}.{n}", s) for i in range(500) for n, s in
                               (("w", (64, 64)), ("b", (64,)), ("deep", (1_000, 3, 100)))))  # fmt: skip
    whole = {s.name: s for s in layout.segments}
    sample = sample_layout(reducer, layout, 2, 1 << 18)
    assert (1 << 18) * 0.9 < sample.numel < (1 << 18) * 1.5
    for s in sample.segments:
        assert reducer.exact(s) == reducer.exact(whole[s.name])
        assert s.shape[1:] == whole[s.name].shape[1:]
        assert s.numel >= min(whole[s.name].numel, 1 << 16)

    def coded(of: cc.Layout) -> float:
        return sum(s.numel for s in of.segments if not reducer.exact(s)) / of.numel

    assert coded(sample) == pytest.approx(coded(layout), abs=0.05)


class Picky(cc.SignScale):
    """Codes nothing but whole models, on tensors that exist."""

    def encode_rows(self, i: Inputs, gain: Any, rng: Any, hints: Any, find: Any) -> None:
        if not i.wire.is_meta:
            raise ArithmeticError("not this one")
        super().encode_rows(i, gain, rng, hints, find)


def test_a_prediction_that_fails_is_left_out_and_a_wrong_reducer_is_an_error() -> None:
    layout = cc.Layout.of([("w", (100, 100))])
    found = breakeven(cc.settle(Picky(), 2), layout, 2)
    assert found.seconds == 0
    assert 0 < found.sent < found.dense
    with pytest.raises(ValueError, match="20000"):
        breakeven(cc.settle(cc.TopK(k=20_000), 2), layout, 2)


def test_what_the_first_step_sends_is_said_where_it_differs() -> None:
    for text, first in (
        ("Geometric(ErrorFeedback(TopK(ratio=0.001)), start=0.25, steps=4)", "0.38 MB in the first step"),
        ("EF21(TopK(ratio=0.01))", "1.00 MB in the first step"),
        ("ErrorFeedback(TopK(ratio=0.01))", None),
    ):
        reducer, layout = matrices(text, ("w", (500, 500)))
        line = announce(reducer, layout, 2)
        assert (first in line) if first else ("in the first step" not in line), line
