"""What only wraps answers as what it wraps, whatever it is asked."""

from __future__ import annotations

from typing import Any

import pytest

import compcomm as cc
from compcomm.core import structure

LAYOUT = cc.Layout.of([("w", (40, 50)), ("b", (7,)), ("e", (3, 700))])
INNER = [
    cc.Exact(),
    cc.QSGD(bits=4),
    cc.TopK(ratio=0.1),
    cc.RandK(ratio=0.1),
    cc.QSGD(bits=4, coding="elias"),
    cc.SharedScale(cc.QSGD(bits=4)),
    cc.SparseAllReduce(cc.TopK(ratio=0.1)),
    cc.ErrorFeedback(cc.SignScale()),
    cc.EF21(cc.TopK(ratio=0.1)),
    cc.DGC(cc.TopK(ratio=0.1)),
    cc.PowerSGD(2),
]
WRAPPERS: dict[str, Any] = {
    "Partition": lambda inner: cc.Partition({"*": inner}),
    "Warmup": lambda inner: cc.Warmup(0, inner),
    "Uncompensated": cc.Uncompensated,
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("inner", INNER, ids=repr)
@pytest.mark.parametrize("world", [2, 4])
def test_a_transparent_wrapper_answers_as_what_it_wraps(wrapper: str, inner: Any, world: int) -> None:
    try:
        outer = WRAPPERS[wrapper](inner)
    except ValueError as error:
        assert "has feedback" in str(error)
        return
    outer, due = cc.settle(outer, world), cc.settle(inner, world)
    found = outer.traits._replace(named=due.traits.named) if wrapper == "Partition" else outer.traits
    assert found == due.traits and outer.traits.named >= due.traits.named
    for segment in LAYOUT.segments:
        assert outer.exact(segment) == due.exact(segment)
        assert outer.promises(segment) == due.promises(segment)
        assert outer.slots(segment, world) == due.slots(segment, world)
    assert cc.cost(outer, LAYOUT, world) == cc.cost(due, LAYOUT, world)
    assert structure.has_review(outer, 10) == structure.has_review(due, 10)
    assert structure.scheduled(outer, LAYOUT.segments, 10) == structure.scheduled(due, LAYOUT.segments, 10)
