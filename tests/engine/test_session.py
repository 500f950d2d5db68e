"""The calls of a session in their order, and what is said where they come in another; one rank, a transport of the
test's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import nn

import compcomm as cc
from compcomm.core.collectives import AllGather, AllToAll, Collective, ReduceScatter
from compcomm.core.source import Source, Target
from compcomm.core.transport import Pending, TransportError
from compcomm.engine.host import Host
from compcomm.engine.observer import Observer
from compcomm.engine.operands import accept
from compcomm.engine.options import Options
from compcomm.engine.running_flow import RunningFlow
from compcomm.engine.session import Session

LAYOUT = cc.Layout.of([("w", (40, 50)), ("b", (7,))])


class Done:
    def ready(self) -> bool:
        return True

    def wait(self) -> None:
        pass


class Alone:
    """A transport for one rank that inherits nothing."""

    def __init__(self) -> None:
        self.rank, self.world, self.device, self.staged, self.seconds = 0, 1, torch.device("cpu"), False, 0.0
        self.gone, self.closed = "", False

    def start(self, op: Collective) -> Pending:
        if isinstance(op, AllGather | AllToAll | ReduceScatter):
            op.recv.copy_(op.send)
        return Done()

    def check(self) -> None:
        if self.gone:
            raise TransportError(self.gone)

    def close(self) -> None:
        self.closed = True


def make(reducer: cc.Reducer | cc.Compressor, transport: Alone | None = None) -> Session:
    parameters = [("w", nn.Parameter(torch.empty(40, 50))), ("b", nn.Parameter(torch.empty(7)))]
    return Session(transport or Alone(), Options(reducer), parameters)


@pytest.fixture
def session() -> Iterator[Session]:
    made = make(cc.ErrorFeedback(cc.TopK(ratio=0.1)))
    yield made
    made.close()


def bucket(value: float = 1.0) -> cc.Bucket:
    return cc.Bucket(torch.full((LAYOUT.numel,), value), LAYOUT)


def test_the_calls_in_another_order(session: Session) -> None:
    with pytest.raises(cc.StateError, match=r"submit: no step has begun.*Call begin_step\(\)"):
        session.submit(bucket())
    with pytest.raises(cc.StateError, match=r"end_step: no step has begun.*Call begin_step\(\)"):
        session.end_step()
    session.begin_step()
    session.submit(bucket())
    with pytest.raises(cc.StateError, match=r"begin_step: step 0 has begun and not ended.*abandon_step\(\)"):
        session.begin_step()
    with pytest.raises(cc.StateError, match="state_dict: step 0 has begun"):
        session.state.save()
    session.end_step()
    with pytest.raises(cc.StateError, match="end_step: no step has begun since the last one ended"):
        session.end_step()
    session.begin_step()
    session.submit(bucket(), last=True)
    with pytest.raises(cc.StateError, match="its last bucket was submitted already"):
        session.submit(bucket())
    session.end_step()
    assert session.step == 2


def test_a_step_without_a_bucket_does_not_count(session: Session) -> None:
    session.begin_step()
    assert session.end_step() is None
    session.begin_step()
    session.abandon_step()
    session.begin_step()
    session.submit(bucket())
    assert session.end_step() is not None
    assert session.step == 1


def test_a_step_whose_last_bucket_came_ends_by_itself(session: Session) -> None:
    """DDP's end of a backward pass is not heard of where something raises behind the last bucket."""
    for _ in range(3):
        session.begin_step()
        session.submit(bucket(), last=True)
    session.end_step()
    assert session.step == 3


def test_errors_are_those_of_the_last_good_step_or_unknown() -> None:
    """An abandoned step writes over the buffers in which the last one's payloads lie."""
    session = make(cc.ErrorFeedback(cc.TopK(ratio=0.1)))
    for scale, abandoned in ((1.0, False), (-3.0, True)):
        session.begin_step()
        session.submit(cc.Bucket(scale * torch.arange(1.0, 1 + LAYOUT.numel), LAYOUT), last=not abandoned)
        if abandoned:
            session.abandon_step()
        else:
            session.end_step()
            errors = session.statistics.errors()
            assert errors["b"] is None and errors["w"] is not None and 0.0 < errors["w"] < 1.0
    assert session.statistics.errors() == {}
    session.close()


@pytest.mark.parametrize(
    "text", ["ErrorFeedback(TopK(ratio=0.1))", "DGC(TopK(ratio=0.1), momentum=0.0)", "EControl(TopK(ratio=0.1))"]
)
def test_whoever_feeds_something_back_has_errors(text: str) -> None:
    """By what the slots declare, and not by their names."""
    session = make(cc.parse(text))
    for step in range(2):  # EControl's first one is dense
        session.begin_step()
        session.submit(cc.Bucket(torch.arange(LAYOUT.numel).sub(900.0 * step), LAYOUT), last=True)
        session.end_step()
    error = session.statistics.errors()["w"]
    assert error is not None and 0.0 < error < 1.0
    session.close()


def test_another_reducer_begins_with_no_scratch_memory_of_the_old_one() -> None:
    session = make(cc.ErrorFeedback(cc.TopK(ratio=0.1)))
    arena = session.steps.scheduler.arena

    def step() -> None:
        session.begin_step()
        session.submit(bucket(), last=True)
        session.end_step()

    step()
    before, held = session.setup.configuration(), arena.nbytes()
    session.setup.switch(cc.Exact())
    step()
    assert held > 0 and arena.nbytes() == 0, "a plain sum in place needs none"
    session.setup.restore(before)
    step()
    assert arena.nbytes() == held
    session.setup.switch(cc.Exact())
    assert arena.nbytes() == 0
    session.close()


def test_sources_and_targets(session: Session) -> None:
    session.begin_step()
    with pytest.raises(TypeError, match="a host gives its gradient alone"):
        session.submit(Source(bucket(), bucket()))
    session.end_step()
    exact = make(cc.Exact())
    given, wanted = bucket(3.0), cc.Bucket(torch.ones(LAYOUT.numel, dtype=torch.float64), LAYOUT)
    exact.begin_step()
    future = exact.submit(Source(given, decay=2.0), Target(wanted, scale=5.0, accumulate=True))
    exact.end_step()
    assert future.wait() is wanted.flat
    assert torch.equal(wanted.flat, torch.full_like(wanted.flat, 31.0))
    exact.close()


def test_buckets_are_numbered_as_they_come() -> None:
    seen: list[tuple[int, int]] = []

    class Noted(cc.Exact):
        def reduce(self, source, target, state, ctx):  # type: ignore[no-untyped-def]
            if not source.x.flat.is_meta:
                seen.append((ctx.step, ctx.bucket))
            return super().reduce(source, target, state, ctx)

    noted = make(Noted())
    for _ in range(2):
        noted.begin_step()
        for _ in range(3):
            noted.submit(bucket())
        noted.end_step()
    noted.close()
    assert seen == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]


def test_a_transport_that_is_gone_and_a_session_that_is_closed() -> None:
    transport = Alone()
    session = make(cc.Exact(), transport)
    transport.gone = "the cable is cut"
    with pytest.raises(RuntimeError, match=r"Exact\(\): the cable is cut"):
        session.begin_step()
    session.close()
    assert transport.closed
    with pytest.raises(RuntimeError, match="this session was closed"):
        session.begin_step()


def test_errors_speak_of_the_host() -> None:
    """A script's user reads of the session; a host that hands in its own words is spoken of by these."""
    with pytest.raises(ValueError, match=r"^Session: seed=1.5 is not"):
        Options(cc.Exact(), seed=1.5)  # type: ignore[arg-type]
    with pytest.raises(cc.StateError, match=r"^Session: check_every=3 needs the parameters' names\. Give the names"):
        Session(Alone(), Options(cc.Exact(), check_every=3), None)
    ours = Host(call="train", what="trainer", over="has ended. Start another.", nameless="Name them.")
    with pytest.raises(TypeError, match=r"^train: scaler=3 has no get_scale"):
        Options(cc.Exact(), scaler=3, host=ours)
    session = Session(Alone(), Options(cc.Exact(), host=ours), None)
    with pytest.raises(cc.StateError, match=r"save: parameters have no names yet\. Name them"):
        session.state.load("save", {}, merged=False)
    session.begin_step()
    session.submit(bucket())
    with pytest.raises(cc.StateError, match=r"call abandon_step\(\) on every rank, then call state_dict again"):
        session.state.save()
    session.close()
    with pytest.raises(RuntimeError, match="this trainer has ended"):
        session.begin_step()


def test_observers_hear_of_every_step_and_stand_in_checkpoints(session: Session) -> None:
    class Counts(Observer):
        heard = 0

        def after_step(self, flows: Sequence[RunningFlow], exposed: float) -> None:
            self.heard += len(flows)

        def saved(self) -> dict[str, int]:
            return {"heard": self.heard}

    counts = Counts()
    session.observers.append(counts)
    for _ in range(2):
        session.begin_step()
        session.submit(bucket())
        session.submit(bucket())
        session.end_step()
    assert counts.heard == 4
    assert session.state.save()["rank 0 of 1"]["heard"] == 4


ROWS = cc.Layout(
    [
        cc.Segment("w", (40, 50), 0, 1500),
        cc.Segment("w", (40, 50), 1500, 2000, 1500),
        cc.Segment("b", (7,), 2000, 2007),
    ],
    3000,
)
"""Two equal rows, as a sharded host lays a buffer out; what no segment covers is padding."""


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (torch.ones(2007), None, r"submit\(Tensor\): .* Bucket\(flat, layout\)"),
        (cc.Bucket(torch.ones(2006), LAYOUT), None, r"shape \(2006,\), and its layout 2007 elements"),
        (cc.Bucket(torch.ones(3, 669), LAYOUT), None, "flat, contiguous"),
        (bucket(), cc.Bucket(torch.ones(2007, dtype=torch.int64), LAYOUT), r"its tensor is torch\.int64"),
        (cc.Bucket(torch.ones(4), cc.Layout.of([("z", (4,))])), None, "'z' is none of the parameters"),
    ],
)
def test_what_is_no_bucket_of_this_session_is_refused(session: Session, source: Any, target: Any, message: str) -> None:
    session.begin_step()
    with pytest.raises((TypeError, ValueError), match=message):
        session.submit(source, target)
    session.submit(bucket(), last=True)  # the step goes on
    session.end_step()
    assert session.step == 1


def test_another_ranks_row_is_refused() -> None:
    flat = cc.Bucket(torch.ones(3000), ROWS)
    there = Alone()
    there.world = 2
    for rank in (0, 1):
        there.rank = rank
        own, other = (ROWS.rows(2)[r] for r in (rank, 1 - rank))  # type: ignore[index]
        for good in (own, own.packed(), ROWS):
            accept(flat, cc.Bucket(torch.ones(good.numel), good), there, {"w": 2000, "b": 7}, True)
        for bad in (other, other.packed()):
            with pytest.raises(ValueError, match=f"of row {rank}, this rank's"):
                accept(flat, cc.Bucket(torch.ones(bad.numel), bad), there, None, True)
        with pytest.raises(ValueError, match=r"of the source: .* Session\(\.\.\., rows=True\)"):
            accept(flat, cc.Bucket(torch.ones(own.numel), own), there, None, False)


def test_what_is_made_of_no_rows_is_refused() -> None:
    layout, there = cc.Layout.of([("w", (7,))]), Alone()
    there.world = 2
    with pytest.raises(ValueError, match="not made of 2 equal rows"):
        accept(cc.Bucket(torch.ones(7), layout), cc.Bucket(torch.ones(7), layout), there, {"w"}, True)
