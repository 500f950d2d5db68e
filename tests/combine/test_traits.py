"""What only wraps answers as what it wraps, whatever it is asked."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

import compcomm as cc
from compcomm.combine.wrapper import Wrapper
from compcomm.compressors.wrapper import CompressorWrapper
from compcomm.core import structure
from compcomm.core.description import Described, is_ours

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
CHANGE = {
    "SizeRule": "the setting, by the size of a layer",
    **dict.fromkeys(("Geometric", "Linear", "Steps"), "the setting, by the step"),
    **dict.fromkeys(("Accordion", "GlobalTopK", "LGreCo"), "the setting, by what they measure, in slots of their own"),
}
"""Wrappers that are not transparent, and what they change."""
COMPRESSORS = {
    "Unproven": "nothing but that feedback takes it",
    "Contractive": "the scaling factor, and with it delta",
    "Rotated": "the coordinates, and what follows from them",
}


def _concrete(base: type) -> set[str]:
    found: set[str] = set()
    for sub in base.__subclasses__():
        found |= _concrete(sub)
        if not (sub.__name__.startswith("_") or inspect.isabstract(sub)) and sub.__name__ in Described.registry:
            found.add(sub.__name__)
    return {name for name in found if is_ours(Described.registry[name])}


def test_every_wrapper_is_in_a_list_here() -> None:
    """A new one is transparent, and then its answers are compared, or says what it changes."""
    assert _concrete(Wrapper) == {*WRAPPERS, *CHANGE}
    assert _concrete(CompressorWrapper) == set(COMPRESSORS)


@pytest.mark.parametrize("inner", [cc.SignScale(scale="l2"), cc.ChunkedTopK(values=torch.float16)], ids=repr)
def test_a_compressor_that_changes_nothing_answers_as_what_it_wraps(inner: cc.Compressor) -> None:
    outer = cc.Unproven(inner)
    for name in ("linear", "sparse", "variable", "keeps_zeros", "alignment", "dtype", "unbiased"):
        assert getattr(outer, name) == getattr(inner, name), name
    for name in ("per_row_k", "sends_values"):
        assert getattr(outer, name, False) == getattr(inner, name, False), name
    for segment in LAYOUT.segments:
        assert outer.exact(segment) == inner.exact(segment) and outer.slots(segment) == inner.slots(segment)
        for name in ("section", "kept", "gain", "delta", "omega"):
            assert getattr(outer, name)(segment.numel) == getattr(inner, name)(segment.numel), name
    assert cc.cost(outer, LAYOUT, 2) == cc.cost(inner, LAYOUT, 2)


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
