"""Sharded hosts: ``out`` names only this rank's row of the buffer, and only that row is computed."""

from __future__ import annotations

import pytest
import torch

import compcomm as cc
from compcomm.routes.reduce_scatter import ReduceScatter
from compcomm.transports.dry_run import plan

PARAMETERS = (("a", 96), ("b", 40), ("c", 5))
ROUTES = [
    cc.Exact(),
    cc.AllReduce(cc.RandK(ratio=0.25, dense_below=1)),
    cc.AllGather(cc.QSGD(bits=4, block=16, dense_below=1)),
]
"""Whose row is that of the whole mean, whatever way the payloads go."""


def _buffer(world: int) -> cc.Layout:
    """Row r holds piece r of every parameter, one after the other, with padding at the end of a row."""
    size = sum(-(-n // world) for _, n in PARAMETERS)
    segments = []
    for rank in range(world):
        position = rank * size
        for name, numel in PARAMETERS:
            each = -(-numel // world)
            low, high = min(numel, rank * each), min(numel, (rank + 1) * each)
            segments.append(cc.Segment(name, (1, numel), position, position + high - low, low))
            position += each
    return cc.Layout([s for s in segments if s.numel], size * world)


def _inputs(world: int, layout: cc.Layout) -> list[list[cc.Bucket]]:
    g = torch.Generator().manual_seed(world)
    return [[cc.Bucket(torch.randn(layout.numel, generator=g), layout)] for _ in range(world)]


def _rows(reducer: cc.Reducer, world: int, steps: int = 1) -> tuple[cc.Layout, list[torch.Tensor], cc.Simulator]:
    layout = _buffer(world)
    rows = layout.rows(world)
    assert rows is not None
    simulator = cc.Simulator(reducer, world, seed=3, rows=True)
    for _ in range(steps):
        outs = [[cc.Bucket(torch.full((layout.numel,), 9.0), row)] for row in rows]
        simulator.step(_inputs(world, layout), outs)
    return layout, [o[0].flat for o in outs], simulator


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("reducer", ROUTES, ids=repr)
def test_a_row_is_the_row_of_the_whole_mean(reducer: cc.Reducer, world: int) -> None:
    layout, found, _ = _rows(reducer, world)
    full = cc.Simulator(reducer, world, seed=3).step(_inputs(world, layout))[0][0].flat
    _compare(layout, found, full, world)


def _compare(layout: cc.Layout, found: list[torch.Tensor], full: torch.Tensor, world: int) -> None:
    rows = layout.rows(world)
    assert rows is not None
    for rank, row in enumerate(rows):
        mine = torch.zeros(layout.numel, dtype=torch.bool)
        for s in row.segments:
            mine[s.start : s.stop] = True
            assert torch.allclose(found[rank][s.start : s.stop], full[s.start : s.stop], rtol=1e-6, atol=1e-7)
        size = layout.numel // world
        elsewhere = torch.ones(layout.numel, dtype=torch.bool)
        elsewhere[rank * size : (rank + 1) * size] = False
        assert (found[rank][elsewhere] == 9.0).all(), "another rank's row was written"
        assert (found[rank][~mine] == 9.0).all(), "padding was written"


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "compressor",
    [
        cc.QSGD(bits=4, block=16, dense_below=1),
        cc.SignScale(block=16, dense_below=1),
        cc.TopK(ratio=0.2, dense_below=1),
    ],
    ids=repr,
)
def test_two_phase_stops_at_the_owner(compressor: cc.Compressor, world: int) -> None:
    """The first phase alone: its row is what an all-gather of the same pieces gives, and nothing is encoded twice."""
    layout, found, simulator = _rows(cc.TwoPhase(compressor), world)
    full = cc.Simulator(cc.AllGather(compressor), world, seed=3).step(_inputs(world, layout))[0][0].flat
    _compare(layout, found, full, world)
    both = plan(cc.TwoPhase(compressor, server=False), layout, world)
    assert [p.kind for p in both] == ["AllToAll", "AllGather"]
    assert simulator.sent[0] <= both[0].sent + 64, "the second phase was sent"


@pytest.mark.parametrize("world", [2, 3])
def test_feedback_with_sharded_results(world: int) -> None:
    """Residuals stay whole, rows get the means, and nothing is lost."""
    compressor = cc.SignScale(block=16, dense_below=1)
    steps = 6
    layout = _buffer(world)
    rows = layout.rows(world)
    assert rows is not None
    simulator = cc.Simulator(cc.ErrorFeedback(compressor), world, rows=True)
    applied = torch.zeros(layout.numel, dtype=torch.float64)
    due = torch.zeros(layout.numel, dtype=torch.float64)
    for t in range(steps):
        g = torch.Generator().manual_seed(t)
        inputs = [[cc.Bucket(torch.randn(layout.numel, generator=g), layout)] for _ in range(world)]
        outs = [[cc.Bucket(torch.zeros(layout.numel), row)] for row in rows]
        simulator.step(inputs, outs)
        for rank in range(world):
            applied += outs[rank][0].flat.double()
            due += inputs[rank][0].flat.double() / world
    held = torch.zeros(layout.numel, dtype=torch.float64)
    for store in simulator.stores:
        residual = store.bucket("residual", layout)
        for s, at in zip(layout.segments, residual.layout.segments, strict=True):
            held[s.start : s.stop] += residual.flat[at.start : at.stop].double() / world
    for s in layout.segments:
        cut = slice(s.start, s.stop)
        assert torch.allclose(applied[cut] + held[cut], due[cut], rtol=0, atol=1e-5)


@pytest.mark.parametrize("world", [2, 4])
def test_exact_reduce_scatters_the_buffer_as_it_is(world: int) -> None:
    """(W-1)/W of the buffer, padding included, where an all-reduce sends twice as much."""
    layout = _buffer(world)
    assert not layout.covers
    rows = layout.rows(world)
    assert rows is not None
    simulator = cc.Simulator(cc.Exact(), world, rows=True)
    outs = [[cc.Bucket(torch.zeros(layout.numel), row)] for row in rows]
    simulator.step(_inputs(world, layout), outs)
    assert simulator.sent == [4 * layout.numel // world * (world - 1)] * world


@pytest.mark.parametrize("world", [2, 4])
def test_an_exact_part_reduce_scatters_too(world: int) -> None:
    layout = _buffer(world)
    simulator = cc.Simulator(
        cc.Partition({"a": cc.Exact(), "*": cc.SignScale(block=16, dense_below=1)}), world, rows=True
    )
    simulator.step(_inputs(world, layout))
    coded = cc.cost(
        cc.SignScale(block=16, dense_below=1), layout.select(lambda s: s.name != "a"), world, rows=True
    ).sent
    assert simulator.sent[0] == coded + 4 * 96 // world * (world - 1)


def test_all_ranks_undo_a_step_that_one_sees_to_be_bad() -> None:
    """An infinity in the exact part is in one rank's row alone, and memory of the coded part must go back on all."""
    layout = _buffer(4)
    reducer = cc.Partition({"a": cc.Exact(), "*": cc.ErrorFeedback(cc.SignScale(block=16, dense_below=1))})
    simulator = cc.Simulator(reducer, 4, rows=True)
    inputs = _inputs(4, layout)
    inputs[2][0].flat[next(s.start for s in layout.segments if s.name == "a" and s.offset == 24)] = float("inf")
    simulator.step(inputs)
    assert simulator.bad
    for store, given in zip(simulator.stores, inputs, strict=True):
        held = store.bucket("residual", layout.select(lambda s: s.name != "a"))
        for s, at in zip((s for s in layout.segments if s.name != "a"), held.layout.segments, strict=True):
            torch.testing.assert_close(held.flat[at.start : at.stop], given[0].flat[s.start : s.stop])


def test_what_has_no_rows_says_so() -> None:
    for reducer, words in (
        (cc.PowerSGD(2), "whole matrices"),
        (cc.Warmup(3, cc.PowerSGD(2)), "between='replicate'"),
        (cc.SharedScale(cc.QSGD(bits=4)), "every payload then goes one hop"),
    ):
        with pytest.raises(ValueError, match=words):
            cc.settle(reducer, 4, rows=True)
    with pytest.raises(ValueError, match="every rank wants the whole mean"):
        cc.settle(ReduceScatter(cc.SignScale()), 4)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_before_compression_with_sharded_results(nesterov: bool) -> None:
    """DGC's velocity is its own memory, which has no padding; rows are still those of the host's buffer."""
    reducer = cc.DGC(cc.TopK(ratio=0.2, dense_below=1), nesterov=nesterov)
    layout, found, _ = _rows(reducer, 4, steps=3)
    full = cc.Simulator(cc.DGC(cc.AllGather(reducer.reducer), nesterov=nesterov), 4, seed=3)
    for _ in range(3):
        means = full.step(_inputs(4, layout))
    _compare(layout, found, means[0][0].flat, 4)


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("scheme", [cc.EF21, cc.EControl])
def test_estimates_with_sharded_results(scheme: type, world: int) -> None:
    """A row of m, also through two-phase's first round alone, and zero where no rank has a gradient."""
    compressor = cc.SignScale(block=16, dense_below=1)
    layout = _buffer(world)
    rows = layout.rows(world)
    assert rows is not None
    for route in (cc.AllGather(compressor), cc.TwoPhase(compressor)):
        full = cc.Simulator(scheme(cc.AllGather(compressor)), world)
        part = cc.Simulator(scheme(route), world, rows=True)
        for t in range(4):
            inputs = _inputs(world, layout)
            for rank, (bucket,) in enumerate(inputs):
                bucket.flat.mul_(1 + rank + t)
                for s in layout.segments:
                    if t == 2 and s.name == "b":
                        bucket.flat[s.start : s.stop] = 0.0
            outs = [[cc.Bucket(torch.full((layout.numel,), 9.0), row)] for row in rows]
            part.step(inputs, outs)
            means = full.step(inputs)
            _compare(layout, [o[0].flat for o in outs], means[0][0].flat, world)
            assert all(means[0][0].flat[s.start : s.stop].any() == (t != 2) for s in layout.segments if s.name == "b")
