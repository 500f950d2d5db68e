"""Bytes on the wire: the closed formulas, the dry run and what the simulator counts are one number."""

from __future__ import annotations

from math import ceil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import compcomm as cc

N = 1 << 20  # elements of one parameter, so that headers are small beside it
LAYOUT = cc.Layout.of([("w", (1024, 1024))])
HEADER = 24  # 20 bytes and one bit for the one segment, padded
worlds = pytest.mark.parametrize("world", [2, 3, 4, 8, 64])


def _sent(reducer: cc.Reducer | cc.Compressor, world: int) -> int:
    return cc.cost(reducer, LAYOUT, world).sent


@worlds
def test_ring_all_reduce(world: int) -> None:
    assert _sent(cc.Exact(), world) == 2 * (4 * N * (world - 1) // world)
    bf16 = _sent(cc.AllReduce(cc.Cast(torch.bfloat16)), world)
    assert bf16 == 2 * (2 * N * (world - 1) // world) + 2 * (12 * (world - 1) // world), "and three numbers as a header"
    k = ceil(0.01 * N)
    assert _sent(cc.RandK(ratio=0.01), world) == 2 * ((12 + 4 * k) * (world - 1) // world)


@worlds
@pytest.mark.parametrize("ratio", [0.001, 0.01, 0.1])
def test_sparse_all_gather(world: int, ratio: float) -> None:
    k = ceil(ratio * N)
    payload = HEADER + 4 * (N // 65536) + 2 * k + (2 * k) % 4 + 4 * k
    assert _sent(cc.TopK(ratio=ratio), world) == (world - 1) * payload


@worlds
@pytest.mark.parametrize(
    ("compressor", "payload"),
    [
        (cc.QSGD(bits=4), 4 * (N // 512) + N // 2),
        (cc.QSGD(bits=8, block=1024), 4 * (N // 1024) + N),
        (cc.QSGD(levels=5), 4 * (N // 512) + N // 2),
        (cc.SignScale(), 4 * (N // 512) + N // 8 + 1024 // 8),  # a bit for each row
        (cc.Cast(torch.bfloat16), 2 * N),
    ],
    ids=lambda v: repr(v),
)
def test_two_phase(world: int, compressor: cc.Compressor, payload: int) -> None:
    """Phase 1 sends all but one's own share, phase 2 one's own share to all others; shares differ by one block."""
    block = payload // (N // compressor.alignment) if compressor.alignment > 1 else 2
    found = [cc.cost(cc.TwoPhase(compressor), LAYOUT, world, rank).sent for rank in range(world)]
    due = 2 * (world - 1) * (payload / world + HEADER)
    for sent in found:
        assert abs(sent - due) <= 2 * world * (block + 4)
    assert sum(found) / world == pytest.approx(due, abs=world * (block + 4))


@pytest.mark.parametrize("compressor", [cc.QSGD(bits=4), cc.SignScale(), cc.Cast(torch.bfloat16)], ids=repr)
def test_between_two_ranks_a_gather_costs_what_two_phases_cost(compressor: cc.Compressor) -> None:
    gather, phases = _sent(cc.AllGather(compressor), 2), _sent(cc.TwoPhase(compressor), 2)
    assert phases - gather == HEADER


@pytest.mark.parametrize(
    ("reducer", "ratio"),
    [
        (cc.Cast(torch.bfloat16), 2.0),
        (cc.ErrorFeedback(cc.QSGD(bits=4, rounding="nearest")), 32 / 4.0625),
        (cc.ErrorFeedback(cc.SignScale()), 32 / 1.0625),
        (cc.ErrorFeedback(cc.TopK(ratio=0.01)), 32 / 0.48),
    ],
    ids=repr,
)
def test_ratios_between_two_ranks(reducer: cc.Reducer, ratio: float) -> None:
    assert cc.cost(reducer, LAYOUT, 2).ratio == pytest.approx(ratio, rel=2e-3)


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=5), st.integers(1, 7),
    st.sampled_from([cc.QSGD(bits=3, block=16, dense_below=9), cc.SignScale(dense_below=9), cc.Cast(torch.bfloat16, 9),
                     cc.TopK(ratio=0.3, dense_below=9), cc.RandK(ratio=0.3, dense_below=9)]),
    st.sampled_from([cc.AllGather, cc.TwoPhase, cc.AllReduce, cc.ErrorFeedback]),
)  # fmt: skip
def test_the_simulator_counts_what_cost_says(
    shapes: list[tuple[int, int]], world: int, c: cc.Compressor, route: type
) -> None:
    if route is cc.AllReduce and not c.linear:
        return
    reducer = cc.settle(route(c), world)
    layout = cc.Layout.of((f"w{i}", s) for i, s in enumerate(shapes))
    simulator = cc.Simulator(reducer, world)
    simulator.step([[cc.Bucket(torch.randn(layout.numel), layout)] for _ in range(world)])
    assert simulator.sent == [cc.cost(reducer, layout, world, rank).sent for rank in range(world)]


def test_small_and_flat_parameters_travel_exact() -> None:
    layout = cc.Layout.of([("w", (32, 32)), ("small", (31, 33)), ("flat", (4096,)), ("scalar", ())])
    (gather,) = cc.cost(cc.AllGather(cc.SignScale()), layout, 2).collectives
    assert gather.sent == 24 + 4 * (1023 + 4096 + 1) + 4 + 4 * 2 + 128, "a word for the bits of 32 rows"


def test_a_warm_up_counts_what_comes_after_it() -> None:
    inner = cc.ErrorFeedback(cc.TopK(ratio=0.01))
    assert cc.cost(cc.Warmup(100, inner), LAYOUT, 4).sent == cc.cost(inner, LAYOUT, 4).sent


def test_one_rank_sends_nothing() -> None:
    found = cc.cost(cc.ErrorFeedback(cc.TopK(ratio=0.01)), LAYOUT, 1)
    assert found.sent == 0 and found.ratio == float("inf")
