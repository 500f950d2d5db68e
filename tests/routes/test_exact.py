"""The plain mean, in the gradient's own precision and in every form in which a reducer may be called."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import compcomm as cc
from compcomm.core.state import State
from compcomm.testing.traffic import reduce_together

LAYOUT = cc.Layout([cc.Segment("a", (3, 4), 0, 12), cc.Segment("b", (5,), 14, 19)], 20)


def _inputs(world: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[cc.Bucket]:
    g = torch.Generator().manual_seed(seed)
    return [cc.Bucket(torch.randn(20, generator=g).to(dtype), LAYOUT) for _ in range(world)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_keeps_the_dtype(dtype: torch.dtype, world: int) -> None:
    inputs = _inputs(world, dtype)
    simulator = cc.Simulator(cc.Exact(), world)
    means = simulator.step([[b] for b in inputs])
    due = torch.stack([b.flat.double() for b in inputs]).mean(0)
    for rank in range(world):
        flat = means[rank][0].flat
        assert flat.dtype == dtype
        for s in LAYOUT.segments:
            assert torch.allclose(
                flat[s.start : s.stop].double(), due[s.start : s.stop], rtol=0, atol=4 * torch.finfo(dtype).eps
            )


def test_adds_scales_and_leaves_no_error() -> None:
    x, g = _inputs(3), _inputs(3, seed=1)
    found = reduce_together(cc.Exact(), x, 0, add=g, decay=0.5, add_scale=2.0, fill=1.0, out_scale=0.1, accumulate=True)
    y = torch.stack([0.5 * a.flat + 2.0 * b.flat for a, b in zip(x, g, strict=True)]).mean(0)
    for result, out, seen, _ in found:
        assert result.sent is None and result.error is None and len(seen) == 1
        for s in LAYOUT.segments:
            assert torch.allclose(out.flat[s.start : s.stop], 1.0 + 0.1 * y[s.start : s.stop], atol=1e-6)
        assert (out.flat[12:14] == 1.0).all() and out.flat[19] == 1.0, "padding is left alone"


def _alone(x: cc.Bucket, out: cc.Bucket, **options: Any) -> None:
    state = State(cc.Store(cc.Exact()), x.layout)
    flow = cc.Exact().reduce(cc.Source(x, **options), cc.Target(out), state, cc.Context())
    for _ in flow:
        pass


def test_in_place_with_a_decay() -> None:
    layout = cc.Layout.of([("w", (2, 3))])
    x = cc.Bucket(torch.arange(6.0), layout)
    _alone(x, x, decay=0.5)
    assert x.flat.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]


def test_nothing_stays_behind() -> None:
    """x + add is sent whole, so x holds zero afterwards, and add is only read."""
    layout = cc.Layout.of([("w", (2, 3))])
    x, g, out = (cc.Bucket(torch.full((6,), v), layout) for v in (1.0, 2.0, 9.0))
    _alone(x, out, add=g)
    assert out.flat.eq(3.0).all() and g.flat.eq(2.0).all() and not x.flat.any()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_bad_rank_is_seen_by_all(value: float) -> None:
    inputs = _inputs(3)
    inputs[1].flat[15] = value
    simulator = cc.Simulator(cc.Exact(), 3)
    means = simulator.step([[b] for b in inputs])
    assert simulator.bad
    assert all(not m[0].flat[15].isfinite() for m in means)


def test_cancelling_infinities_are_bad_too() -> None:
    inputs = _inputs(2)
    inputs[0].flat[3], inputs[1].flat[3] = float("inf"), -float("inf")
    simulator = cc.Simulator(cc.Exact(), 2)
    simulator.step([[b] for b in inputs])
    assert simulator.bad


def test_large_finite_sums_are_not_bad() -> None:
    """The quick test, one sum, overflows here; the careful one behind it does not."""
    inputs = [cc.Bucket(torch.full((20,), 3e37), LAYOUT) for _ in range(2)]
    simulator = cc.Simulator(cc.Exact(), 2)
    simulator.step([[b] for b in inputs])
    assert not simulator.bad


def test_an_exact_part_does_not_make_a_bad_step_good() -> None:
    reducer = cc.Partition({"a": cc.ErrorFeedback(cc.TopK(ratio=0.5, dense_below=0)), "*": cc.Exact()})
    simulator = cc.Simulator(reducer, 1)
    simulator.mean([{"a": torch.tensor([1.0, float("inf"), 2.0, 3.0]), "b": torch.full((8,), 3e38)}])
    assert simulator.bad, "the sum of b's elements overflows, its elements do not: that says nothing about a"


@pytest.mark.parametrize("accumulate", [False, True])
def test_rows_with_padding_are_scattered(accumulate: bool) -> None:
    """Each rank's row arrives by one reduce-scatter, as long as the fullest; padding is neither sent nor touched."""
    segments = [cc.Segment("a", (3, 2), 0, 6), cc.Segment("b", (2,), 7, 9), cc.Segment("c", (7,), 10, 17)]
    layout = cc.Layout(segments, 20)
    rows = layout.rows(2)
    assert rows is not None
    inputs = [torch.randn(20, generator=torch.Generator().manual_seed(r)) for r in range(2)]
    for flat in inputs:
        flat[9] = float("nan")
    outs = [cc.Bucket(torch.full((20,), 5.0), row) for row in rows]
    ctxs = [cc.Context(r, 2) for r in range(2)]
    for ctx in ctxs:
        ctx.buffer("exact rows", 16, torch.float32).fill_(float("nan"))  # left there by a bad step of another layout
    flows = [
        cc.Exact().reduce(
            cc.Source(cc.Bucket(flat, layout)),
            cc.Target(out, accumulate=accumulate, row=True),
            State(cc.Store(cc.Exact()), layout),
            ctx,
        )
        for flat, out, ctx in zip(inputs, outs, ctxs, strict=True)
    ]
    ops: list[Any] = [next(f) for f in flows]
    assert [type(op).__name__ for op in ops] == ["ReduceScatter"] * 2 and ops[0].recv.numel() == 8
    total = ops[0].send + ops[1].send
    for op, part in zip(ops, total.view(2, 8), strict=True):
        op.recv.copy_(part)
    for r, (f, out) in enumerate(zip(flows, outs, strict=True)):
        with pytest.raises(StopIteration):
            next(f)
        assert ctxs[r].bad is False
        due = torch.full((20,), 5.0)
        for s in rows[r].segments:
            mean = 0.5 * inputs[0][s.start : s.stop] + 0.5 * inputs[1][s.start : s.stop]
            due[s.start : s.stop] = mean + 5.0 * accumulate
        assert out.flat.equal(due)


def test_all_ranks_send_the_same_where_one_row_has_everything() -> None:
    """Rows as long as the one would be more bytes than the whole."""
    layout = cc.Layout([cc.Segment("a", (5,), 0, 5), cc.Segment("b", (3,), 24, 27)], 48)
    rows = layout.rows(6)
    assert rows is not None
    for r, row in enumerate(rows):
        x = cc.Bucket(torch.ones(48), layout)
        target = cc.Target(cc.Bucket(x.flat, row), row=True)
        flow = cc.Exact().reduce(cc.Source(x), target, State(cc.Store(cc.Exact()), layout), cc.Context(r, 6))
        assert type(next(flow)).__name__ == "AllReduce"


def test_the_hosts_own_rows_are_sent_and_received_without_a_copy() -> None:
    layout = cc.Layout.of([("w", (3, 4))]).sharded(2)
    x, row = torch.zeros(16), torch.empty(8)
    own = cc.Layout([cc.Segment("w", (3, 4), 0, 8)], 8)
    target = cc.Target(cc.Bucket(row, own), scale=2.0, row=True)
    state = State(cc.Store(cc.Exact()), layout)
    op: Any = next(cc.Exact().reduce(cc.Source(cc.Bucket(x, layout)), target, state, cc.Context(0, 2)))
    assert op.send.data_ptr() == x.data_ptr() and op.recv.data_ptr() == row.data_ptr()
