"""One bucket's flow in one step, taken from collective to collective by whoever owns the order.

Where ranks are nodes (``Context.within``), the ranks of a node own other parameters of a bucket each, so their reducers
may take other numbers of rounds between the nodes: one for a vector, two for a matrix of PowerSGD's, none for nothing.
What follows inside the node must come in the same order on all of them. So it has its turn, which all of them know: the
one after as many as the longest of their ways takes on paper. Who is there earlier waits for it with the collective in
hand, and who is not there yet hurries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from time import perf_counter

from ..core.collectives import INSIDE, AllToAll, Collective, Commit
from ..core.context import Context
from ..core.layout import Bucket, Layout
from ..core.reducer import Reduced, Reducer, flow
from ..core.source import Source, Target
from ..core.state import State, Store
from ..core.transport import Pending, Transport
from ..transports.dry_run import plan
from .failure import failed, outline, rehearse

Sequences = dict[tuple[Reducer, Layout, Layout], tuple[list[object], list[Collective], bool]]
"""The last sequence that a healthy flow took, by reducer, layout and wanted layout: its keys, its collectives in
outline, and whether a part had no message (``Context.apart``)."""


class RunningFlow:
    """A flow on its way.

    ``advance`` waits for the collective that is under way, lets the flow run on, and starts its next one; when the flow
    stands at its Commit, it is ``done`` and ``deliver`` is called. The rest of a flow that raises is replaced by what
    says "failed": the number, kinds and sizes of its collectives stay what the peers expect.

    An error after a flow's last collective (while it decodes, or at its Commit) has no message left to travel in: this
    rank raises it at the end of the step and sends no more; the peers end in their next step, by the group's timeout.
    """

    def __init__(
        self,
        reducer: Reducer,
        source: Source,
        target: Target,
        store: Store,
        ctx: Context,
        transport: Transport,
        sequences: Sequences,
        deliver: Callable[[RunningFlow], None],
    ) -> None:
        self.layout, self._dtype, self.ctx, self._deliver = source.x.layout, source.x.flat.dtype, ctx, deliver
        self._target: Target | None = target
        self._outer = target.out.layout
        self.error: Exception | None = None
        self.result = Reduced()
        self.done = False
        self.seconds = 0.0
        self.sent = 0
        self._reducer, self._transport, self._sequences = reducer, transport, sequences
        self._state = State(store, self.layout)
        self._flow = flow(reducer, source, self._state, ctx, target)
        self._pending: Pending | None = None
        self._taken: list[Collective] = []
        self._failed: Iterator[Collective] = iter(())
        self._held: Collective | None = None
        self._turn = 0
        """How often it has been advanced."""
        self._inside_again = 0
        """The turn in which collectives inside a node follow those between nodes; 0: there are no nodes."""
        if ctx.within is not None:
            self._inside_again = 2 + _rounds(reducer, ctx.within.every(self.layout), ctx.world)

    @property
    def out(self) -> Bucket:
        """Where the mean is, until it is delivered."""
        assert self._target is not None
        return self._target.out

    @property
    def ready(self) -> bool:
        """Whether ``advance`` would not wait."""
        return self._pending is None or self._pending.ready()

    def advance(self) -> None:
        """Runs on to the next collective, or to the Commit.

        Raises:
            TransportError: the group is lost; nothing more can be sent.
        """
        self._turn += 1
        hold = 1 < self._turn < self._inside_again
        while self._go_on(hold) and self._turn == self._inside_again:
            pass

    def _go_on(self, hold: bool) -> bool:
        """Takes the next step; ``hold``: unless that is a collective inside the node. Returns whether it was one
        between nodes."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.wait()
        op, self._held = self._held or self._next(), None
        # At its Commit a flow has written its mean: the host gets it now, and memory waits for what became of the step.
        if isinstance(op, Commit):
            self.done = True
            if self.error is None:
                self._remember()
            deliver, self._deliver = self._deliver, _delivered
            deliver(self)
            self._target = None  # what the host gave is its own again: a sharded one frees it at once
            return False
        if hold and op.axis == INSIDE:
            self._held = op
            return False
        self.sent += op.counted_bytes(self._transport.world, self._transport.rank)
        self._pending = self._transport.start(op)
        return op.axis != INSIDE

    def fail(self, error: Exception) -> None:
        """Replaces the rest of the flow by what says "failed"."""
        self.error = error
        self._flow.close()
        try:
            due = rehearse(self._reducer, self._state, self.ctx, self._dtype, self._target)
        except Exception:  # what broke the flow breaks its rehearsal too: do as in the last step that went well
            known = self._sequences.get(self._sequence)
            if known is None:
                raise error from None
            due, self.ctx.apart = known[1:]
        self._failed = iter(failed(due[len(self._taken) :], self.ctx))

    def commit(self, bad: bool) -> None:
        """Answers the flow's Commit; what it returns is in ``result``."""
        if self.error is not None:
            return
        try:
            self._flow.send(bad)
        except StopIteration as stop:
            self.result = stop.value
        except Exception as error:
            self.error = error

    @property
    def _sequence(self) -> tuple[Reducer, Layout, Layout]:
        return self._reducer, self.layout, self._outer

    def _remember(self) -> None:
        """Keeps what this flow did in outline, where it is not known already; the tensors themselves are let go."""
        taken, self._taken = self._taken, []
        keys = [_key(op) for op in taken]
        known = self._sequences.get(self._sequence)
        if known is None or known[0] != keys:
            self._sequences[self._sequence] = keys, [outline(op) for op in taken], self.ctx.apart

    def _next(self) -> Collective:
        since = perf_counter()
        try:
            if self.error is None:
                try:
                    op = next(self._flow)
                    if not isinstance(op, Commit):
                        self._taken.append(op)
                    return op
                except Exception as error:
                    self.fail(error)
            return next(self._failed, Commit())
        finally:
            self.seconds += perf_counter() - since


@lru_cache(maxsize=1024)
def _rounds(reducer: Reducer, owned: tuple[Layout, ...], world: int) -> int:
    """How many collectives there are between ``world`` nodes, for the rank of a node that has most of them."""
    return max(len(plan(reducer, layout, world)) for layout in owned)


def _delivered(flow: RunningFlow) -> None:
    raise RuntimeError("a mean is delivered once")


def _key(op: Collective) -> object:
    return op.signature, (op.send_splits, op.recv_splits) if isinstance(op, AllToAll) else ()
