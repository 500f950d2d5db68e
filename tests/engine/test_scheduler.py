"""The order of collectives, errors and the end of steps, in one process."""

from __future__ import annotations

from threading import Timer
from typing import Any

import pytest
import torch

import compcomm as cc
from compcomm.core.collectives import AllGather, AllReduce, AllToAll, Collective
from compcomm.core.context import Arena
from compcomm.core.deferred import DeferredError
from compcomm.core.header import PeerError, read_headers
from compcomm.core.rows import Inputs
from compcomm.core.source import Source, Target
from compcomm.core.state import State, Store
from compcomm.engine import running_flow
from compcomm.engine.failure import failed, outline, rehearse
from compcomm.engine.jobs import UNWRITTEN, Job, PendingStep, Step, written
from compcomm.engine.running_flow import RunningFlow
from compcomm.engine.scheduler import Scheduler
from compcomm.transports.dry_run import plan
from compcomm.transports.process_group import Pending, ProcessGroup, TransportError

LAYOUT = cc.Layout.of([("w", (40, 50)), ("b", (7,))])


class Recorded(ProcessGroup):
    """One rank alone that writes down what starts, and may lose its peers."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[Collective] = []
        self.dies_at = -1

    def start(self, op: Collective) -> Pending:
        if len(self.started) == self.dies_at:
            raise self.lost(op, RuntimeError("gone"))
        self.started.append(op)
        return super().start(op)


class Counted(cc.Store):
    declared = 0

    def declare(self, layout: cc.Layout) -> None:
        self.declared += 1
        super().declare(layout)


class Future:
    value: torch.Tensor | None = None

    def set_result(self, value: torch.Tensor) -> None:
        assert self.value is None
        self.value = value


class Bench:
    """A scheduler, and steps of buckets to put through it."""

    def __init__(self, reducer: cc.Reducer) -> None:
        self.transport = Recorded()
        self.reducer = reducer
        self.store = Counted(reducer)
        self.finished: list[tuple[int, bool]] = []
        self.scheduler = Scheduler(self.transport, self.store, Arena(), 0, self._note)

    def _note(self, flows: list[RunningFlow], bad: bool) -> None:
        self.finished.append((len(flows), bad))

    def bucket(self, step: Step, index: int, last: bool, flat: torch.Tensor | None = None) -> Future:
        future = Future()
        flat = torch.ones(LAYOUT.numel) if flat is None else flat
        bucket = cc.Bucket(flat, LAYOUT)
        self.scheduler.handle(Job(step, Source(bucket), Target(bucket), index, last, future))
        return future

    def step(self) -> Step:
        return Step(self.reducer, 1.0, self.reducer.traits.stateful)


def test_a_capture_waits_for_what_the_device_writes_and_not_forever() -> None:
    words = torch.full((2,), UNWRITTEN)
    pending = PendingStep(
        Step(cc.Exact(), 1.0, False), [], [DeferredError(words, lambda code: PeerError(f"code {code}"))], words, None
    )
    timer = Timer(0.05, lambda: words.copy_(torch.tensor([1, 7])))
    timer.start()
    bad, error = pending.outcome(capturing=True)
    assert bad and str(error) == "code 7"
    with pytest.raises(RuntimeError, match=r"torch.cuda.synchronize\(\) before the capture"):
        written(torch.full((1,), UNWRITTEN), patience=0.01)


def test_the_order_follows_from_the_buckets_alone() -> None:
    bench = Bench(cc.TwoPhase(cc.SignScale()))
    step = bench.step()
    for b in range(3):
        bench.bucket(step, b, b == 2)
    kinds = [type(op) for op in bench.transport.started]
    # b0 out | b1 out, b0 back | b2 out, b0 done and b1 back | b1 done, b2 back
    assert kinds == [AllToAll, AllToAll, AllGather, AllToAll, AllGather, AllGather]
    assert step.done.is_set()
    assert step.error is None
    assert bench.finished == [(3, False)]
    assert bench.scheduler.number == 1


def test_buckets_of_other_dtypes_go_through_fp32_and_come_back() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        bench = Bench(cc.settle(cc.TopK(ratio=1.0), 1))
        flat = torch.arange(LAYOUT.numel, dtype=dtype)
        future = bench.bucket(bench.step(), 0, True, flat)
        assert future.value is flat
        assert torch.equal(flat, torch.arange(LAYOUT.numel, dtype=dtype))
        assert bench.transport.started[0].signature[1] == "uint8"
    bench = Bench(cc.Exact())
    bench.bucket(bench.step(), 0, True, torch.ones(LAYOUT.numel, dtype=torch.float16))
    assert bench.transport.started[0].signature == ("AllReduce", "float16", 2 * LAYOUT.numel)


def test_the_dense_steps_of_a_warmup_are_sums_in_the_buckets_own_dtype() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        bench = Bench(cc.settle(cc.Warmup(2, cc.ErrorFeedback(cc.TopK(ratio=0.1))), 1))
        for _ in range(3):
            bench.bucket(bench.step(), 0, True, torch.ones(LAYOUT.numel, dtype=dtype))
        dense, also, coded = (op.signature for op in bench.transport.started)
        assert dense == also == ("AllReduce", str(dtype).removeprefix("torch."), 2 * LAYOUT.numel)
        assert coded[:2] == ("AllGather", "uint8")
    assert cc.settle(cc.Warmup(0, cc.TopK(ratio=0.1)), 1).traits.in_dtype == 0
    assert cc.Warmup(0, cc.Exact()).traits.in_dtype > 1 << 40


def test_state_is_made_for_a_bucket_that_comes_for_the_first_time() -> None:
    bench = Bench(cc.settle(cc.Warmup(9, cc.ErrorFeedback(cc.TopK(ratio=0.1))), 1))
    for _ in range(3):
        step = bench.step()
        bench.bucket(step, 0, False)
        bench.bucket(step, 1, True)
    assert list(bench.store.state_dict()["residual"]) == ["w"]
    assert bench.store.declared == 1


def test_what_a_flow_sent_is_put_down_once(monkeypatch: pytest.MonkeyPatch) -> None:
    outlined: list[str] = []

    def counting(op: Collective) -> Collective:
        outlined.append(type(op).__name__)
        return outline(op)

    monkeypatch.setattr(running_flow, "outline", counting)
    bench = Bench(cc.Warmup(2, cc.TwoPhase(cc.SignScale())))
    for _ in range(5):
        bench.bucket(bench.step(), 0, True)
    assert outlined == ["AllReduce", "AllToAll", "AllGather"]
    ((_, kept, _),) = bench.scheduler._sequences.values()
    assert [op.signature for op in kept] == [op.signature for op in bench.transport.started[-2:]]
    assert all(t.is_meta for op in kept for t in vars(op).values() if isinstance(t, torch.Tensor))


def test_a_mean_that_its_own_type_cannot_hold_is_an_overflow() -> None:
    bench = Bench(cc.settle(cc.ErrorFeedback(cc.TopK(ratio=0.5)), 1))
    step = bench.step()
    bench.store.declare(LAYOUT)
    bench.store.bucket("residual", LAYOUT).flat.fill_(60000.0)
    before = bench.store.bucket("residual", LAYOUT).flat.clone()
    flat = torch.full((LAYOUT.numel,), 30000.0, dtype=torch.float16)
    bench.bucket(step, 0, True, flat)
    assert flat.isinf().any()
    assert bench.finished == [(1, True)]
    torch.testing.assert_close(bench.store.bucket("residual", LAYOUT).flat, before + 30000.0)


def test_an_abandoned_step_gives_its_payloads_back() -> None:
    bench = Bench(cc.settle(cc.ErrorFeedback(cc.TopK(ratio=0.1)), 1))
    step = bench.step()
    future = bench.bucket(step, 0, False)
    bench.scheduler.abandon(step)
    assert step.done.is_set()
    assert future.value is not None
    assert torch.equal(bench.store.bucket("residual", LAYOUT).flat, torch.ones(2000))
    again = bench.step()
    bench.bucket(again, 0, True, torch.zeros(LAYOUT.numel))
    assert bench.finished == [(1, False)]
    assert bench.scheduler.number == 2


def test_an_abandoned_step_leaves_no_flows_whose_buffers_it_wrote_over() -> None:
    bench = Bench(cc.settle(cc.ErrorFeedback(cc.TopK(ratio=0.1)), 1))
    bench.bucket(bench.step(), 0, True)
    assert len(bench.scheduler.last) == 1
    step = bench.step()
    bench.bucket(step, 0, False)
    bench.scheduler.abandon(step)
    assert bench.scheduler.last == []


class Broken(cc.SignScale):
    """Raises when it codes; a description on meta tensors does too."""

    def encode_rows(self, i: Inputs, gain: Any, rng: Any, hints: Any, find: Any) -> None:
        if rng.step >= 1:
            raise ZeroDivisionError("mine")
        super().encode_rows(i, gain, rng, hints, find)


def test_a_failed_flow_keeps_the_sequence_and_says_so_to_the_peers() -> None:
    bench = Bench(cc.TwoPhase(Broken()))
    for _ in range(2):
        step = bench.step()
        for b in range(2):
            future = bench.bucket(step, b, b == 1)
    signatures = [op.signature for op in bench.transport.started]
    assert signatures[:4] == signatures[4:]
    assert isinstance(step.error, ZeroDivisionError)
    assert future.value is not None
    assert future.value.isnan().all()
    sent = bench.transport.started[4]
    assert isinstance(sent, AllToAll)
    with pytest.raises(cc.PeerError, match="rank 0 failed in step 1, bucket 0"):
        read_headers(sent.send.view(1, -1), 2, cc.Context(step=1), (sent.send.numel(),))
    assert isinstance(bench.scheduler.broken, ZeroDivisionError)
    assert not bench.scheduler.lost


def test_a_lost_group_ends_the_step_at_once() -> None:
    bench = Bench(cc.Exact())
    bench.transport.dies_at = 1
    step = bench.step()
    futures = [bench.bucket(step, b, False) for b in range(2)]
    assert step.done.is_set()
    assert isinstance(step.error, TransportError)
    assert "a peer has died" in str(step.error)
    late = bench.bucket(step, 2, True)
    for future in (*futures, late):
        assert future.value is not None
    assert late.value is not None
    assert late.value.isnan().all()
    assert bench.scheduler.lost
    assert len(bench.transport.started) == 1


@pytest.mark.parametrize(
    "text", ["Exact()", "AllReduce(RandK(ratio=0.1))", "TwoPhase(SignScale())", "ErrorFeedback(AllGather(TopK(k=5)))"]
)
def test_what_a_failed_rank_sends_has_the_shape_of_the_step(text: str) -> None:
    reducer = cc.settle(cc.parse(text), 3)
    ctx = cc.Context(rank=0, world=3, step=9, bucket=4)
    ops = failed(rehearse(reducer, State(Store(reducer, 0, 3), LAYOUT), ctx, torch.float32), ctx)
    assert [op.signature for op in ops] == [p[:3] for p in plan(reducer, LAYOUT, 3, 0)]
    for op in ops:
        if isinstance(op, AllReduce):
            assert op.buffer.isnan().all()
            continue
        assert isinstance(op, AllToAll | AllGather)
        for message in op.send.split(op.send_splits if isinstance(op, AllToAll) else len(op.send)):
            with pytest.raises(cc.PeerError, match="rank 0 failed in step 9, bucket 4"):
                read_headers(message.view(1, -1), 2, cc.Context(step=9, bucket=4), (len(message),))
