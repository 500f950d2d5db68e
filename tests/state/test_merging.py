"""Merging slots of every kind over W stores, and cutting the result anew: no process group, the simulator's sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import pytest
import torch

import compcomm as cc
from compcomm.core.description import Described
from compcomm.core.reducer import Flow
from compcomm.core.state import Entry
from compcomm.core.structure import world_independent
from compcomm.state import merging, quantized
from tests.contract.cases import REDUCERS

SHAPES = {"a": (40, 5), "b": (7,), "c": (3, 11)}
LAYOUT = cc.Layout.of(SHAPES.items())
CODEC = cc.QSGD(bits=8, rounding="nearest", block=64, dense_below=0)


def _weights(world: int) -> tuple[float, ...]:
    return (1.0,) if world == 1 else (0.5, *[0.5 / (world - 1)] * (world - 1))


@dataclass(frozen=True, repr=False)
class _Every(cc.Reducer):
    """A slot of each kind. Rank 0 counts for half, the others for the rest."""

    order: ClassVar[Callable[[torch.Tensor], torch.Tensor] | None] = None

    def slots(self, segment: cc.Segment, world: int) -> Mapping[str, cc.Slot]:
        codec, order = quantized.Quantized(CODEC), type(self).order
        mean = partial(cc.Slot, cc.Merge.MEAN, weights=_weights(world))
        owned = partial(cc.Slot, cc.Merge.SHARDED, order=order)
        return {
            "mean": mean(pending=True),
            "half": mean(dtype=torch.bfloat16),
            "bytes": mean(dtype=torch.uint8, codec=codec, pending=True),
            "count": cc.Slot(cc.Merge.REPLICATED, numel=2, dtype=torch.int64, fill=3),
            "owned": owned(alignment=4),
            "owned bytes": owned(alignment=64, dtype=torch.uint8, codec=codec),
            "owed": owned(alignment=4, into="mean", pending=True),
            "owed bytes": owned(alignment=64, dtype=torch.uint8, codec=codec, into="bytes"),
            "copied": cc.Slot(cc.Merge.REPLICATED),
            "owed copies": owned(alignment=4, into="copied"),
            "hint": cc.Slot(cc.Merge.DROP, numel=1, fill=9.0),
        }

    def reduce(self, *args: object, **options: object) -> Flow:  # type: ignore[override]
        raise NotImplementedError


@dataclass(frozen=True, repr=False)
class _Backwards(_Every):
    """Its owners hold everything in the opposite order."""

    order = staticmethod(lambda joined: joined.flip(0))


Described.registry.pop("_Every", None)
Described.registry.pop("_Backwards", None)


def _numbers(entry: Entry) -> torch.Tensor:
    """What an entry stands for."""
    if entry.slot.codec is None:
        return entry.tensor.double()
    return _decoded(entry.tensor, entry.held.numel)


def _decoded(section: torch.Tensor, numel: int) -> torch.Tensor:
    out, layout = torch.zeros(numel), cc.Layout.of([("x", (numel,))])
    quantized.decode_(section, layout, CODEC, cc.Bucket(out, layout))
    return out.double()


def _filled(reducer: cc.Reducer, world: int, seed: int = 0) -> cc.Simulator:
    simulator = cc.Simulator(reducer, world)
    generator = torch.manual_seed(seed)
    for store in simulator.stores:
        store.declare(LAYOUT)
        for e in store.entries():
            x = torch.randn(e.held.numel, generator=generator)
            if e.slot.codec is not None:
                layout = cc.Layout.of([("x", (x.numel(),))])
                quantized.encode_(cc.Bucket(x, layout), e.tensor, CODEC)
            elif e.slot.merge is cc.Merge.REPLICATED:
                e.tensor.copy_(torch.arange(e.tensor.numel()) + 7)
            else:
                e.tensor.copy_(x[: e.tensor.numel()])
    return simulator


def _expected(simulator: cc.Simulator, slot: str, name: str) -> torch.Tensor:
    """The merged value by the rule's words, in double precision."""
    ranks = [{(e.name, e.segment.name): e for e in store.entries()} for store in simulator.stores]

    def joined(which: str) -> torch.Tensor:
        return ranks[0][which, name].slot.natural(torch.cat([_numbers(r[which, name]) for r in ranks]))

    if slot.startswith("owned"):
        return joined(slot)
    if slot == "copied":
        return _numbers(ranks[0][slot, name]) + joined("owed copies")
    weights = _weights(len(ranks))
    mean = torch.stack([w * _numbers(r[slot, name]) for w, r in zip(weights, ranks, strict=True)]).sum(0)
    return mean + joined({"mean": "owed", "bytes": "owed bytes"}[slot]) if slot != "half" else mean


@pytest.mark.parametrize("reducer", [_Every(), _Backwards()])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_every_slot_merges_by_its_rule(reducer: cc.Reducer, world: int) -> None:
    simulator = _filled(reducer, world)
    merged = simulator.merged()
    for rank in merged[1:]:
        assert all(torch.equal(rank[s][n], t) for s, e in merged[0].items() for n, t in e.items())
    assert sorted(merged[0]) == ["bytes", "copied", "count", "half", "mean", "owned", "owned bytes"]
    for name, shape in SHAPES.items():
        numel = torch.Size(shape).numel()
        assert merged[0]["count"][name].tolist() == [7, 8]
        near = {"mean": 1e-5, "half": 2e-2, "bytes": 0.03, "owned": 0, "owned bytes": 0.02, "copied": 1e-4}
        for slot, tolerance in near.items():
            found = merged[0][slot][name]
            coded_ = slot.endswith("bytes")
            assert found.shape == (shape if not coded_ else (-(-CODEC.section(numel) // 4) * 4,))
            values = _decoded(found, numel) if coded_ else found.double().view(-1)
            assert (values - _expected(simulator, slot, name)).abs().max() <= tolerance, (slot, name)


@pytest.mark.parametrize("reducer", [_Every(), _Backwards()])
@pytest.mark.parametrize(("old", "new"), [(4, 2), (2, 3), (3, 1), (1, 5)])
def test_what_is_cut_anew_merges_to_the_same(reducer: cc.Reducer, old: int, new: int) -> None:
    merged = _filled(reducer, old).merged()[0]
    other = _filled(reducer, new, seed=1)
    for store in other.stores:
        merging.load_merged(store, merged)
        for e in store.entries():
            if e.name == "hint":
                assert e.tensor.tolist() == [9.0]
            elif e.name.startswith("owed"):
                assert not e.tensor.any(), "what was owed went into the mean"
            elif e.slot.merge is not cc.Merge.SHARDED:
                assert torch.equal(e.tensor, merged[e.name][e.key].view(-1))
    again = other.merged()[0]
    for slot, entries in merged.items():
        for name, tensor in entries.items():
            if slot.endswith("bytes"):
                numel = torch.Size(SHAPES[name]).numel()
                a, b = _decoded(tensor, numel), _decoded(again[slot][name], numel)
            else:
                a, b = tensor.double(), again[slot][name].double()
            assert (a - b).abs().max() <= (0.03 if slot.endswith("bytes") else 1e-6 if slot == "mean" else 0.0), slot


def test_only_what_is_pending_is_rescaled() -> None:
    (store,) = _filled(_Every(), 1).stores
    before = {(e.name, e.key): _numbers(e).clone() for e in store.entries()}
    merging.rescale(store, 0.25)
    for e in store.entries():
        due = before[e.name, e.key] * (0.25 if e.slot.pending else 1.0)
        assert (_numbers(e) - due).abs().max() <= (1e-5 if e.slot.codec is not None else 0.0), e.name


def test_pieces_are_put_together_and_cut_anew() -> None:
    layout = cc.Layout([cc.Segment("a", (40, 5), 0, 80, 0), cc.Segment("a", (40, 5), 80, 200, 80)])
    simulator = cc.Simulator(cc.ErrorFeedback(cc.TopK(ratio=0.1, dense_below=0)), 2)
    for rank, store in enumerate(simulator.stores):
        store.declare(layout)
        store.bucket("residual", layout).flat.copy_(torch.arange(200.0) + rank)
    merged = simulator.merged()[0]["residual"]
    assert {n: tuple(t.shape) for n, t in merged.items()} == {"a": (40, 5)}
    assert torch.equal(merged["a"].view(-1), torch.arange(200.0) + 0.5)
    said = r"cut elsewhere: 'a' has pieces from elements 0, 80 in the checkpoint, from 0(, 120)? here"
    (whole,) = cc.Layout.of([("a", (40, 5))]).segments
    for cut in ([whole], [whole.piece(0, 120), whole.piece(120, 200)]):
        other = cc.Store(simulator.reducer, 0, 2)
        other.declare(cc.Layout(cut))
        merging.load_merged(other, {"residual": merged})
        assert torch.equal(other.bucket("residual", cc.Layout(cut)).flat, torch.arange(200.0) + 0.5)
        with pytest.raises(cc.StateError, match=said):
            other.load_state_dict(simulator.stores[0].state_dict())


ROWS = cc.Layout.of([("w", (30, 40)), ("v", (2, 700)), ("b", (9,))])


@pytest.mark.parametrize(
    "reducer",
    [
        "ErrorFeedback(QSGD(bits=4, rounding='nearest'))",
        "ErrorFeedback(QSGD(bits=4, rounding='nearest'), dtype=int8)",
        "EF21(TopK(ratio=0.1))",
        "EControl(QSGD(bits=4))",
        "DGC(TopK(ratio=0.1))",
        "LGreCo(ErrorFeedback(TopK(ratio=0.1)), every=2)",
    ],
)
def test_rows_move_to_other_numbers_of_workers(reducer: str) -> None:
    """4 ranks' memory with 2 and 3: the mean over the ranks of what each holds is the same, by parameter."""
    first = cc.Simulator(cc.parse(reducer), 4, rows=True)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        layout = ROWS.sharded(4)
        given = [torch.zeros(layout.numel) for _ in range(4)]
        for flat, s in ((flat, s) for flat in given for s in layout.segments):
            flat[s.start : s.stop] = torch.randn(s.numel, generator=generator)
        first.step([[cc.Bucket(flat, layout)] for flat in given])
    merged = first.merged()
    for slots in merged[1:]:
        assert all(torch.equal(slots[slot][n], t) for slot, entries in merged[0].items() for n, t in entries.items())
    for world in (2, 3):
        second = cc.Simulator(cc.parse(reducer), world, rows=True)
        for store in second.stores:
            store.declare(ROWS.sharded(world))
            merging.load_merged(store, merged[0])
        again = second.merged()[0]
        assert again.keys() == merged[0].keys()
        for slot, entries in merged[0].items():
            for name, tensor in entries.items():
                near = 0.02 * float(tensor.float().abs().max()) if tensor.dtype == torch.uint8 else 1e-6
                one, other = (
                    _decoded(t, 1200) if t.dtype == torch.uint8 and name == "w" else t.double()
                    for t in (tensor, again[slot][name])
                )
                if tensor.dtype != torch.uint8 or name == "w":
                    torch.testing.assert_close(one, other, rtol=1e-6, atol=near)


def test_owners_without_a_place_before_begin_at_zero() -> None:
    two, three = (cc.Simulator(cc.ErrorFeedback(cc.QSGD(bits=4, rounding="nearest", dense_below=0)), w) for w in (2, 3))
    for store in (*two.stores, *three.stores):
        store.declare(LAYOUT)
        for e in store.entries():
            e.tensor.fill_(1.0)
    merged = two.merged()[0]
    assert sorted(merged) == ["residual"]
    for store in three.stores:
        merging.load_merged(store, merged)
        assert all(e.tensor.eq(float(e.name == "residual")).all() for e in store.entries())
    back = three.merged()[0]
    assert sorted(back) == ["residual"]


def test_slots_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="has no mean"):
        cc.Slot(cc.Merge.MEAN, dtype=torch.int64)
    with pytest.raises(ValueError, match="Leave numel=3 out"):
        cc.Slot(cc.Merge.SHARDED, numel=3)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["QSGD(bits=4, rounding='nearest')", "SparseAllReduce(TopK(ratio=0.05))"])
@pytest.mark.parametrize(("old", "new"), [(4, 2), (3, 4)])
def test_ef21s_mean_is_again_the_mean_of_its_estimates(text: str, old: int, new: int) -> None:
    """The owner's residual is mean(h) - m: where it is lost, m never comes right again between two ranks."""
    reducer = cc.EF21(cc.parse(text))
    first, second = cc.Simulator(reducer, old), cc.Simulator(reducer, new)
    generator = torch.manual_seed(5)
    for _ in range(6):
        first.mean([{"w": torch.randn(64, 48, generator=generator)} for _ in range(old)])
    merged = first.merged()[0]
    assert (first.stores[0].state_dict()["mean"]["w"] - merged["estimate"]["w"].view(-1)).abs().max() > 1e-3
    assert (merged["mean"]["w"] - merged["estimate"]["w"]).abs().max() < 1e-5
    for store in second.stores:
        store.declare(cc.Layout.of([("w", (64, 48))]))
        merging.load_merged(store, merged)
    second.steps = first.steps
    still = torch.randn(64, 48, generator=generator)
    for _ in range(400):
        (mean, *_) = second.mean([{"w": still + rank} for rank in range(new)])
    assert (mean["w"] - still - (new - 1) / 2).abs().max() < 1e-3


def test_every_scheme_has_the_slot_that_its_owners_go_into() -> None:
    """Else what they owe would be lost where another number of workers takes a route without owners."""
    segment = cc.Segment("layer.weight", (64, 48), 0, 64 * 48)
    checked = 0
    for reducer in (r for kind in REDUCERS.values() for r in kind):
        for world in (2, 3, 4):
            slots = cc.settle(reducer, world).slots(segment, world)
            for name, slot in slots.items():
                checked += bool(slot.into)
                assert not slot.into or slot.into in slots, f"{reducer!r}: {name!r} goes into {slot.into!r}"
    assert checked > 10


def test_only_estimates_are_weighted() -> None:
    """EF21-W: h estimates g/(W w), so its weighted mean is m; v is the gradient itself, whatever its weight."""
    simulator = cc.Simulator(cc.EF21(cc.TopK(ratio=0.5, dense_below=0), weights=(0.1, 0.2, 0.3, 0.4), momentum=0.5), 4)
    for _ in range(3):
        simulator.mean([{"w": torch.full((4, 4), float(rank))} for rank in range(4)])
    merged = simulator.merged()[0]
    assert torch.allclose(merged["momentum"]["w"], torch.full((4, 4), 1.5))
    assert torch.allclose(merged["estimate"]["w"], merged["mean"]["w"], atol=1e-6)


def test_weights_belong_to_a_number_of_workers() -> None:
    """And to no portable state: the new workers have their own."""
    plain, weighted = cc.EF21(cc.TopK(ratio=0.1)), cc.EF21(cc.TopK(ratio=0.1), weights=(0.25, 0.75))
    assert world_independent(weighted) == plain
    assert world_independent(cc.Warmup(3, weighted)) == cc.Warmup(3, plain)
    assert world_independent(cc.Partition({"a": weighted, "*": cc.TopK(0.1)})) == cc.Partition(
        {"a": plain, "*": cc.TopK(0.1)}
    )
