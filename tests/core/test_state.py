"""The store: slabs by name, cut anew when layouts change, loaded whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import compcomm as cc
from compcomm.core.description import Described
from compcomm.core.reducer import Flow
from compcomm.core.state import State, Store

SHAPES = {"a": (4, 5), "b": (7,), "c": (3, 3), "d": (2, 2, 2), "e": ()}


@dataclass(frozen=True, repr=False)
class _Three(cc.Reducer):
    """A slot of each kind: as large as the segment, of fixed size, and one that is shared among owners."""

    def slots(self, segment: cc.Segment, world: int) -> Mapping[str, cc.Slot]:
        if segment.name == "b":
            return {}
        return {
            "residual": cc.Slot(cc.Merge.MEAN),
            "count": cc.Slot(cc.Merge.REPLICATED, numel=2, dtype=torch.int64, fill=3),
            "server": cc.Slot(cc.Merge.SHARDED, alignment=4),
        }

    def reduce(self, *args: object, **options: object) -> Flow:  # type: ignore[override]
        raise NotImplementedError


Described.registry.pop("_Three", None)


def _layout(names: str) -> cc.Layout:
    return cc.Layout.of((n, SHAPES[n]) for n in names)


def test_slots_are_made_at_once() -> None:
    store = cc.Store(_Three(), rank=1, world=2)
    store.declare(_layout("abcde"))
    state = store.state_dict()
    assert list(state) == ["count", "residual", "server"]
    assert {n: t.numel() for n, t in state["residual"].items()} == {"a": 20, "c": 9, "d": 8, "e": 1}
    assert {n: t.tolist() for n, t in state["count"].items()} == {n: [3, 3] for n in "acde"}
    assert {n: t.numel() for n, t in state["server"].items()} == {"a": 12, "c": 5, "d": 4, "e": 1}
    assert store.nbytes() == 4 * 38 + 8 * 8 + 4 * 22


def test_a_slab_is_one_buffer_in_the_order_of_the_layout() -> None:
    store, layout = cc.Store(_Three()), _layout("cabd")
    bucket = State(store, layout)["residual"]
    assert [(s.name, s.start, s.stop) for s in bucket.layout.segments] == [("c", 0, 9), ("a", 9, 29), ("d", 29, 37)]
    assert store.bucket("residual", layout).flat.data_ptr() == bucket.flat.data_ptr()


@given(st.lists(st.permutations("abcde"), min_size=2, max_size=5), st.lists(st.integers(1, 4), min_size=5, max_size=5))
def test_values_follow_their_names_into_new_buckets(orders: list[list[str]], cuts: list[int]) -> None:
    store = cc.Store(_Three())
    for i, (order, cut) in enumerate(zip(orders, cuts, strict=False)):
        for part in ("".join(order[:cut]), "".join(order[cut:])):
            layout = _layout(part)
            bucket = store.bucket("residual", layout)
            for s in bucket.layout.segments:
                due = 0.0 if i == 0 else ord(s.name) + i - 1
                assert (bucket.view(s) == due).all()
                bucket.view(s).fill_(ord(s.name) + i)
    held = sum(t.numel() for t in store.state_dict()["residual"].values())
    assert store.nbytes() == 4 * held, "slabs of old layouts are let go"


def test_pieces_of_one_parameter_have_keys_of_their_own() -> None:
    store = cc.Store(_Three())
    layout = cc.Layout([cc.Segment("a", (4, 5), 0, 8, 0), cc.Segment("a", (4, 5), 8, 20, 8)])
    store.declare(layout)
    assert list(store.state_dict()["residual"]) == ["a", "a@8"]


def test_state_dict_is_a_copy_and_loads_with_weights_only(tmp_path: object) -> None:
    store = cc.Store(_Three())
    store.declare(_layout("abc"))
    state = store.state_dict()
    state["residual"]["a"].fill_(1.0)
    assert not store.state_dict()["residual"]["a"].any()
    path = f"{tmp_path}/state.pt"
    torch.save(state, path)
    store.load_state_dict(torch.load(path, weights_only=True))
    assert store.state_dict()["residual"]["a"].eq(1.0).all()


def test_loading_goes_where_the_slabs_are() -> None:
    one, two = cc.Store(_Three()), cc.Store(_Three())
    one.declare(_layout("abcde"))
    two.declare(_layout("edc"))
    two.declare(_layout("ba"))
    slab = two.bucket("residual", _layout("edc"))
    one.bucket("residual", _layout("abcde")).flat.copy_(torch.arange(38.0))
    two.load_state_dict(one.state_dict())
    assert slab.flat.data_ptr() == two.bucket("residual", _layout("edc")).flat.data_ptr()
    assert slab.flat.tolist() == [37.0, *range(29, 37), *range(20, 29)]


def test_a_layout_that_comes_again_brings_what_another_has_had_since() -> None:
    store = cc.Store(_Three())
    store.bucket("residual", _layout("acd")).flat.fill_(1.0)
    store.bucket("residual", _layout("ad")).flat.fill_(2.0)  # c stays where it was
    assert store.nbytes() == 4 * (37 + 28)
    again = store.bucket("residual", _layout("acd"))
    assert {n: set(t.flatten().tolist()) for n, t in again.views().items()} == {"a": {2.0}, "c": {1.0}, "d": {2.0}}
    assert store.nbytes() == 4 * 37


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s["residual"].pop("c"), "'residual' of 'c' is missing"),
        (lambda s: s.pop("count"), "'count' of 'a' is missing"),
        (lambda s: s["residual"].update(x=torch.zeros(3)), "'residual' of 'x' is unknown here"),
        (lambda s: s.update(momentum={"a": torch.zeros(20)}), "'momentum' of 'a' is unknown here"),
        (lambda s: s["residual"].update(c=torch.zeros(8)), "'residual' of 'c' has 8 elements of torch.float32 where 9"),
        (lambda s: s.update(residual=5), "slot 'residual' is a int, no dictionary"),
        (lambda s: s["residual"].update({3: torch.zeros(3)}), "'residual' of 3 is unknown here"),
        (lambda s: s["count"].update(a=torch.zeros(2)), "'count' of 'a' has 2 elements of torch.float32 where 2 of"),
    ],
)
def test_a_foreign_state_dict_changes_nothing(spoil: object, message: str) -> None:
    store = cc.Store(_Three())
    store.declare(_layout("abc"))
    store.bucket("residual", _layout("abc")).flat.fill_(5.0)
    state = {s: {n: torch.full_like(t, 9) for n, t in e.items()} for s, e in store.state_dict().items()}
    before = store.state_dict()
    spoil(state)  # type: ignore[operator]
    with pytest.raises(cc.StateError, match=message):
        store.load_state_dict(state)
    after = store.state_dict()
    assert all(torch.equal(before[s][n], after[s][n]) for s in before for n in before[s])


def test_renaming_keeps_the_values() -> None:
    store = cc.Store(_Three())
    store.bucket("residual", _layout("ac")).flat.copy_(torch.arange(29.0))
    store.rename({"a": "model.a", "c": "model.c"})
    named = cc.Layout.of([("model.c", SHAPES["c"]), ("model.a", SHAPES["a"])])
    assert store.bucket("residual", named).flat.tolist() == [*range(20, 29), *range(20)]


def test_what_a_reducer_declares_for_another_world_does_not_load() -> None:
    big, small = cc.Store(_Three(), 0, 2), cc.Store(_Three(), 0, 3)
    for store in (big, small):
        store.declare(_layout("a"))
    with pytest.raises(cc.StateError, match="number of workers"):
        small.load_state_dict(big.state_dict())


def test_parts_that_keep_a_slot_in_different_types_have_slabs_of_their_own() -> None:
    """Before the first step too, so that a checkpoint loads into what an attachment begins with."""
    top = cc.TopK(ratio=0.1, dense_below=0)
    parts = cc.Partition({"b": cc.EF21(top, dtype=torch.float64), "*": cc.EF21(top)})
    layout = cc.Layout.of([("a", (8, 4)), ("b", (8, 4)), ("c", (8, 4))])
    store = Store(cc.settle(parts, 2), 0, 2)
    store.declare(layout)
    state = store.state_dict()
    for slot in ("estimate", "mean"):
        assert [state[slot][n].dtype for n in "abc"] == [torch.float32, torch.float64, torch.float32]
    with pytest.raises(ValueError, match="differ in dtype"):
        store.bucket("mean", layout)
    state["mean"]["b"] += 1 / 3
    store.load_state_dict(state)
    assert torch.equal(store.state_dict()["mean"]["b"], state["mean"]["b"])


def test_a_misspelt_slot_is_named() -> None:
    layout = cc.Layout.of([("w", (64, 64))])
    store = Store(cc.settle(cc.ErrorFeedback(cc.TopK(ratio=0.1)), 2), 0, 2)
    with pytest.raises(cc.StateError, match="Did you mean 'residual'"):
        State(store, layout)["residuals"]
