"""The one owner of the order in which collectives start.

Collectives of a group are matched between ranks by the order in which each rank starts them. That order must
therefore follow from the order of the buckets and from nothing else; timing has no say. The schedule:

1. bucket b arrives: its flow runs to its first collective, which starts;
2. then every older flow of the step, oldest first, is waited for and taken to its next collective (a plain sum has
   none and is not waited for);
3. after the last bucket this goes on until all flows stand at their Commit; all are answered whether the step was bad.

A host that needs a bucket's mean at once, with more buckets to come, says so with the bucket (``now``, the same on
every rank): step 3 then comes in between, without the answer.

So while bucket b is being coded, b-1 is on the wire in its first round, b-2 in its second. On CPU the schedule runs in
a thread of its own, the kernels and the waits release the interpreter lock, and the backward pass goes on meanwhile.
On CUDA (not yet measured on a GPU) it runs in the host's thread on one side stream, waits are stream-ordered, and the
host never waits for the device within a step: what the messages said of it (``PendingStep``) is copied to the host
behind the last kernel, and the Commits are answered when the next step begins, or state is asked for. By then the
device has long said it, unless the host runs more than a step ahead. Gloo has to wait for the device before it sends
(``staged``): there the thread of its own waits, on the same side stream.

Where the next step is recorded as a CUDA graph, the Commits of the one before it must not be recorded with it, and
torch allows no wait for the device. They are answered beside the capture: the host learns that the device has spoken
from the memory that it wrote, and what a Commit launches runs at once, in a stream that the capture knows nothing of.

Errors. A flow that raises is continued as failed (see ``failure``), the step runs to its end, then the error is kept
for whoever joins the step, and the scheduler is broken: residuals of the ranks no longer belong together. When the
group itself is lost, nothing more is sent and the error is there at once.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from ..core.collectives import AllReduceMax, Collective
from ..core.context import Arena, Context, Nested
from ..core.deferred import (
    either,
    is_true,
    not_finite,
)
from ..core.drive import drive
from ..core.header import PeerError
from ..core.layout import Layout
from ..core.state import Store
from ..core.structure import between_steps, has_review
from ..core.transport import Transport, TransportError
from .before import Before
from .jobs import UNWRITTEN, Job, PendingStep, Step, written
from .operands import operands, write
from .running_flow import RunningFlow, Sequences


class Scheduler:
    """Runs jobs in order. ``finished`` is called after each step with its flows, in the scheduler's thread; ``last``
    has those of the last good one."""

    def __init__(
        self,
        transport: Transport,
        store: Store,
        arena: Arena,
        seed: int,
        finished: Callable[[list[RunningFlow], bool], None],
        before: Before | None = None,
        within: Nested | None = None,
        everyone: Transport | None = None,
    ) -> None:
        """``before`` keeps what memory held when a step began, for ``take_back``. ``within``: where ranks are nodes.
        ``everyone``: between all ranks of one training, where ``transport`` is between some of them."""
        self.before, self.within = before, within
        self.everyone = everyone or transport
        self.latest: Step | None = None
        """The step that was last begun."""
        self.transport, self.store, self.arena, self.seed, self._finished = transport, store, arena, seed, finished
        self.layouts: dict[Layout, None] = {}
        """Those of the buckets so far, since the parameters have their names."""
        self.resume(0)
        self.broken: Exception | None = None
        self._doomed: Exception | None = None
        self.lost = False
        self._step: Step | None = None
        self._flows: list[RunningFlow] = []
        self._pending: PendingStep | None = None
        self._pinned: Tensor | None = None
        self._waiting: list[Job] = []
        self._sequences: Sequences = {}
        cuda = arena.device.type == "cuda"
        self._side: Any = torch.cuda.Stream(arena.device) if cuda else None
        self._beside: Any = torch.cuda.Stream(arena.device) if cuda else None

    def resume(self, number: int) -> None:
        """The next step has this number; what is counted per step begins anew."""
        self.number = self.first = number
        self.last = list[RunningFlow]()
        self.kernel_seconds = self.review_seconds = 0.0
        self.sent = 0

    def handle(self, job: Job) -> None:
        """Takes one bucket in. Never raises: errors are kept in the step."""
        self._precede(job.since)
        if self._side is not None:
            job.source.x.flat.record_stream(self._side)
            job.target.out.flat.record_stream(self._side)
        with torch.cuda.stream(self._side) if self._side is not None else nullcontext():
            self._waiting.append(job)
            try:
                self.finish_pending()
                if self.lost or self.broken is not None:
                    raise self.broken or RuntimeError("the process group is lost")
                if self._step is not job.step:
                    self._begin(job.step)
                self._arrive(job)
                if job.last:
                    self._land()
                elif job.now:
                    self._drain()
            except Exception as error:  # the group is lost, or a failed flow could not be continued
                self._lose(job.step, error)

    def end(self, step: Step, since: Any = None) -> None:
        """Says that no bucket follows those that came."""
        self._precede(since)
        with torch.cuda.stream(self._side) if self._side is not None else nullcontext():
            try:
                if self._step is step:
                    self._land()
            except Exception as error:
                self._lose(step, error)
        if self.lost:
            step.error = step.error or self.broken
            step.end()

    def abandon(self, step: Step, since: Any = None) -> None:
        """Ends a step whose backward pass raised: flows finish their collectives and give their payloads back."""
        self._precede(since)
        with torch.cuda.stream(self._side) if self._side is not None else nullcontext():
            try:
                if not self.lost and self._step is step:
                    self._land(abandon=True)
            except Exception as error:
                self._lose(step, error)
        self.follow()
        step.end()

    def mark(self) -> Any:
        """Where the stream of the calling thread is now: for what it hands over, maybe to the scheduler's thread, whose
        own current stream is another. None where there are no streams."""
        if self._side is None:
            return None
        return torch.cuda.current_stream(self.arena.device).record_event()

    def _precede(self, since: Any) -> None:
        """What the host had asked for by then comes before what is put on the side stream now."""
        if since is not None:
            self._side.wait_event(since)

    def follow(self) -> None:
        """What the host asks for from now on, of the state or a bucket, comes after what is on the side stream."""
        if self._side is not None:
            torch.cuda.current_stream(self.arena.device).wait_stream(self._side)

    def _begin(self, step: Step) -> None:
        self._step = self.latest = step
        step.store, step.recorded = self.store, self._captured()
        if self.before is not None and step.counted and not step.recorded:
            step.kept = self.before.take(self.store)

    def change(self, store: Store) -> None:
        """Other state from the next step on, and maybe another reducer: what is kept of the old one's steps goes."""
        self.store, self.last = store, []
        self.arena.clear()

    def take_back(self) -> None:
        """All is as it was before the last step, which is over, and its number comes again."""
        step, self.latest = self.latest, None
        self.number -= 1
        self.last = []
        self._doomed = None
        if self.before is not None and step is not None and step.kept and step.store is self.store:
            self.before.give_back()

    def _arrive(self, job: Job) -> None:
        step = job.step
        ctx = Context(
            self.transport.rank, self.transport.world, self.number, job.index, self.seed, step.unscale, step.watch,
            arena=self.arena, within=self.within, alone=job.now and not self._flows_under_way,
        )  # fmt: skip
        layout = job.source.x.layout.row_major
        if layout not in self.layouts:
            self.layouts[layout] = None
            self.store.declare(layout if self.within is None else self.within.own(layout))
        native = self.number < step.reducer.traits.in_dtype and self.within is None
        x, out = operands(job, ctx, native)
        source, target = job.source._replace(x=x), job.target._replace(out=out)
        flow = RunningFlow(
            step.reducer, source, target, self.store, ctx, self.transport, self._sequences, partial(self._deliver, job)
        )
        older: list[RunningFlow] = []
        failed = False
        for f in self._flows:
            failed = failed or f.error is not None
            if not f.done:
                older.append(f)
        if failed:
            flow.fail(self._cause())
        elif job.error is not None:
            flow.fail(job.error)
        self._flows.append(flow)
        flow.advance()
        for f in older:
            # A plain sum starts nothing after its first collective, so when it is finished does not touch the order:
            # the next bucket need not wait for it.
            if not native or f.ready:
                f.advance()

    @property
    def _flows_under_way(self) -> bool:
        return any(not f.done for f in self._flows)

    def _deliver(self, job: Job, flow: RunningFlow) -> None:
        step, mean, wanted = job.step, flow.out, job.target.out
        if flow.error is not None:
            wanted.fill_(float("nan"))
        elif mean.flat is not wanted.flat:
            write(mean, wanted)
        # A mean that fitted fp32 may not fit the type that the host wants it in.
        half = wanted.flat.dtype != torch.float32
        if step.watch and half and (mean.flat is not wanted.flat or self.number >= step.reducer.traits.in_dtype):
            bad = not_finite(wanted.flat) if flow.error is None else False
            flow.ctx.bad = either(flow.ctx.bad, bad)
            flow.ctx.apart = flow.ctx.apart or job.target.row  # a whole mean is equal on all ranks
        self._waiting.remove(job)
        step.delivered = perf_counter()
        job.future.set_result(wanted.flat)

    def _land(self, abandon: bool = False) -> None:
        step, flows = self._step, self._flows
        assert step is not None
        self._drain()
        if self._apart(step) and not abandon:
            self._share_bad(flows)
        self._step = None
        self.number += step.counted
        bad, undecided = abandon, False
        for f in flows:
            bad = bad or f.error is not None or f.ctx.bad is True
            undecided = undecided or isinstance(f.ctx.bad, Tensor) or bool(f.ctx.faults)
        if not bad and undecided and not self._captured():
            self._pending, self._flows = self._ask(step, flows), []
            step.done.set()
        else:
            self._close(step, bad, abandon)

    def _drain(self) -> None:
        """Takes all flows that have come to their Commits, oldest first in every round."""
        running = [f for f in self._flows if not f.done]
        while running:
            for f in running:
                f.advance()
            running = [f for f in running if not f.done]

    def _apart(self, step: Step) -> bool:
        """Whether ranks may know different things of whether a step is bad, and somebody must know the same."""
        shards = self.everyone is not self.transport and self.within is None  # other ranks average other shards
        return step.watch and (shards or any(f.ctx.apart for f in self._flows))

    @property
    def ends_alone(self) -> bool:
        """Whether the step that is under way could be ended without asking the other ranks."""
        return self._step is None or not self._apart(self._step)

    def _share_bad(self, flows: list[RunningFlow]) -> None:
        """Each rank has seen some means of its own row alone; whether memory takes the step back must be the same on
        all."""
        ctx, mine = flows[0].ctx, False
        for f in flows:
            mine = either(mine, f.ctx.bad)
        flag = ctx.buffer("bad rows", 1)
        if isinstance(mine, Tensor):
            flag.copy_(mine.view(1))
        else:
            flag.fill_(mine)
        op = AllReduceMax(flag)
        self._count(op)
        self.everyone.start(op).wait()
        ctx.bad = either(ctx.bad, is_true(flag != 0))

    def _captured(self) -> bool:
        """Whether a step is being recorded as a CUDA graph. The host has no part in its replays, so all of them are
        taken as good: a bad one still delivers NaN, and what it sent is not given back."""
        return self._side is not None and torch.cuda.is_current_stream_capturing()

    def _ask(self, step: Step, flows: list[RunningFlow]) -> PendingStep:
        """Sends what the device knows of a step on its way to the host."""
        faults = [fault for f in flows for fault in f.ctx.faults]
        marks = [f.ctx.bad.view(1) for f in flows if isinstance(f.ctx.bad, Tensor)]
        met = torch.cat(marks).amax().view(1).long() if marks else torch.zeros_like(faults[0].word)
        words = torch.cat([met, *(fault.word for fault in faults)])
        if not words.is_cuda:
            return PendingStep(step, flows, faults, words, None)
        if self._pinned is None or len(self._pinned) < len(words):
            self._pinned = torch.empty(2 * len(words), dtype=torch.int64, pin_memory=True)
        host = self._pinned[: len(words)].fill_(UNWRITTEN).copy_(words, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return PendingStep(step, flows, faults, host, event)

    def finish_pending(self, since: Any = None) -> None:
        """Answers the Commits of a step that still stands at them; waits for what the device says of it."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        capturing = self._captured()
        if not capturing:
            self._precede(since)
        stream = self._beside if capturing else self._side
        with torch.cuda.stream(stream) if stream is not None else nullcontext():
            try:
                bad, error = pending.outcome(capturing)
                self._flows = pending.flows
                if error is not None:
                    pending.flows[0].error = error
                self._close(pending.step, bad or error is not None, False)
                if capturing:  # the graph's replays know nothing of this stream, so it must have come to its end
                    words = pending.words
                    words.fill_(UNWRITTEN).copy_(torch.zeros_like(words, device=self.arena.device), True)
                    written(words)
            except Exception as lost:
                self._lose(pending.step, lost)

    def _close(self, step: Step, bad: bool, abandon: bool) -> None:
        """The end of a step: its flows are told how it went, then whoever watches, then controllers review it."""
        flows, step.bad, failed = self._flows, bad, False
        if abandon:  # its flows wrote over the buffers in which the last step's lie
            self.last = []
        for f in flows:
            f.commit(bad)
            failed = failed or f.error is not None
            self.kernel_seconds += f.seconds
            self.sent += f.sent
        if failed:
            step.error = self.broken = self._cause()
        elif self._doomed is not None:
            step.error = self.broken = self._doomed
        elif step.counted and not abandon:
            self.last = [] if bad else flows
            try:
                self._finished(flows, bad)
            except TransportError:
                raise
            except Exception as error:
                step.error = self.broken = error
        self._flows = []
        step.done.set()
        if not abandon and self.broken is None and has_review(step.reducer, self.number - 1):
            self._review(step)
        step.over.set()

    def _review(self, step: Step) -> None:
        """What controllers do between two steps: the host goes on meanwhile, the next step's buckets wait in line."""
        store, transport = self.store, self.transport
        ctx = Context(transport.rank, transport.world, self.number - 1, seed=self.seed, arena=self.arena)
        since, waited = perf_counter(), transport.seconds
        try:
            drive(between_steps(step.reducer, store.segments(), store, ctx), transport, starting=self._count)
        except TransportError:
            self.number -= 1  # ``_lose`` counts the step that broke
            raise
        except Exception as error:  # on every rank, as a review says so; raised with the next step, at the same place
            self._doomed = error
        self.review_seconds += perf_counter() - since - (transport.seconds - waited)

    def _count(self, op: Collective) -> None:
        self.sent += op.counted_bytes(self.transport.world, self.transport.rank)

    def _cause(self) -> Exception:
        """The error that explains the others: our own before what peers said."""
        errors = [f.error for f in self._flows if f.error is not None]
        return next((e for e in errors if not isinstance(e, PeerError)), errors[0])

    def _lose(self, step: Step, error: Exception) -> None:
        if not self.lost:
            self.number += 1
        self.lost = True
        self.broken = step.error = self.broken or error
        for job in self._waiting:
            job.fail()
            job.step.error = self.broken
            job.step.end()
        self._waiting, self._flows, self._step = [], [], None
        step.end()
