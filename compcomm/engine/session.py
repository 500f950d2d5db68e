"""A session: a reducer at work on the buckets of one host, over one transport.

A host is whatever holds gradients: DDP's hook, an optimizer, a sharded model, a script. It makes a transport, and

    session = Session(transport, options, parameters)        # collective: the ranks compare what they were given
    for batch in data:
        session.begin_step()
        for bucket in ...:                                   # as they come, in the same order on every rank
            session.submit(Source(bucket), Target(wanted))
        session.end_step()                                   # the means are there, or the error is raised
    session.close()

Buckets are numbered in the order in which they come. A step that cannot be ended, as its backward pass raised, is
abandoned on every rank; whatever a rank raises in between reaches its peers with the next message (``failure``).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from ..core.context import Arena, Nested
from ..core.layout import Bucket, Layout, joined
from ..core.reducer import Reducer
from ..core.source import Source, Target
from ..core.state import StateError, Store
from ..core.strides import Order, storage_order
from ..core.structure import check_optimizer
from ..core.transport import Transport
from ..routes.choose import settle
from ..routes.exact import Exact
from ..transports.worker import Worker
from .agreement import agree
from .before import Before
from .jobs import Step
from .local_state import LocalState, Shard
from .observer import Observer
from .operands import accept
from .options import Options
from .pace import Pace
from .replicas import Comparison
from .running_flow import RunningFlow
from .scheduler import Scheduler
from .setup import Setup
from .statistics import Statistics
from .steps import Steps

_FORMATS: dict[Order, str] = {(0, 2, 3, 1): "channels_last", (0, 2, 3, 4, 1): "channels_last_3d"}
"""What torch calls these orders of dimensions; another is told as the dimensions from the outermost on."""


def _told(name: str, p: nn.Parameter) -> str:
    """A parameter, as the ranks compare it: a sum over ranks that hold it in unlike orders would mix its elements."""
    order = storage_order(p)
    lies = f" in memory format {_FORMATS.get(order, list(order))}" if order else ""
    return f"{name} {list(p.shape)} {str(p.dtype)[6:]}{lies}"


class Session:
    """What a host has in hand. All calls come from one thread, and between two ranks in the same order.

    ``setup`` says what is averaged by what, ``state`` saves and resumes what is remembered, ``statistics`` counts,
    ``steps`` is the engine underneath; ``observers`` hear of every step (``Observer``).
    """

    def __init__(
        self,
        transport: Transport,
        options: Options,
        parameters: Sequence[tuple[str, nn.Parameter]] | None,
        *,
        trial: Callable[[Reducer, Layout], None] | None = None,
        layouts: Sequence[Layout] = (),
        facts: Mapping[str, Any] | None = None,
        pace: Pace | None = None,
        rows: bool = False,
        shard: Shard | None = None,
        within: Nested | None = None,
    ) -> None:
        """Collective over the transport, which is the session's alone from now on: compares the configuration.

        ``parameters``: by name; None: they have none yet. ``trial`` is called with the settled reducer and all
        parameters; what it raises is heard of on every rank. ``layouts``: of the buckets that will come, where the host
        knows them and they may hold pieces of parameters; else whole parameters, in whatever buckets. ``facts``: what
        else must be equal on all ranks, as JSON can hold. ``rows``: buckets are made of one row per rank
        (``Layout.sharded``), and of each mean a rank wants its own row alone. ``shard``: all ranks hold the same shard
        of each parameter, and other sessions average the others. ``within``: the ranks of ``transport`` are nodes, and
        each has several; then ``shard`` is this rank among these.

        Raises:
            AgreementError: the ranks differ, or one of them cannot take part.
        """
        from .._version import __version__

        self._enabled = True
        device, world = transport.device, transport.world
        named: list[tuple[str, nn.Parameter]] = []
        layout = Layout(())
        # A rank that cannot take part comes to ``agree`` all the same, with what stands in here: its peers are there
        # already, and would wait until the timeout.
        failure: Exception | None = None
        reducer: Reducer = Exact()
        store = Store(reducer)
        try:
            if parameters is not None and not isinstance(parameters, Sequence):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(
                    f"{type(self).__name__}(parameters={type(parameters).__name__}): give a list of names and "
                    f"parameters, such as list(model.named_parameters())."
                )
            named = list(parameters or ())
            layout = Layout.of((n, p.shape) for n, p in named)
            reducer = settle(options.reducer, world, rows=rows)
            if parameters is None and (options.check_every or reducer.traits.named):
                what = f"check_every={options.check_every}" if options.check_every else repr(options.reducer)
                raise StateError(f"{options.host.call}: {what} needs the parameters' names. {options.host.unnamed}")
            store = Store(reducer, transport.rank, world, device, rows=rows)
            if within is not None:
                layouts = [within.own(layout)]
            if parameters is not None:
                here = {s.name for held in layouts for s in held.segments}
                elsewhere = Layout.of((n, p.shape) for n, p in named if n not in here)
                reducer.check(joined([*layouts, elsewhere]) if layouts else layout)
            # Memory is there before the ranks agree: where one has not enough of it, all hear so now, in no step.
            for expected in layouts or (layout,):
                store.declare(expected.row_major)
            check_optimizer(reducer, options.groups(parameters))
            if trial is not None:  # last: what a host measures or announces is known to fit
                trial(reducer, layout)
        except Exception as error:
            failure = error
        compared = {
            "version of compcomm": __version__,
            "reducer": repr(options.reducer),
            "seed": options.seed,
            "check_every": options.check_every,
            "a scaler": options.scaler is not None,
            "discardable": options.discardable,
            "parameters": [_told(n, p) for n, p in named],
            **(facts or {}),
        }
        agree(transport if shard is None else shard.transport, compared, failure, host=options.host)
        over = weakref.WeakMethod(self._over)  # the worker's thread must not keep its owner alive

        def after(flows: list[RunningFlow], bad: bool) -> None:
            method = over()
            if method is not None:
                method(flows, bad)

        before = Before(options.discardable)
        scheduler = Scheduler(
            transport, store, Arena(device), options.seed, after, before, within, shard.transport if shard else None
        )  # fmt: skip
        # On CUDA nothing waits within a step, so a thread would cost a hand-over for each bucket and gain nothing; but
        # Gloo waits for the device before it sends.
        in_thread = device.type != "cuda" or transport.staged
        worker = Worker(self, "compcomm-scheduler") if in_thread else None
        self.steps = Steps(transport, scheduler, worker, pace or Pace(), options.host)
        self.setup = Setup(options, reducer, parameters, scheduler, layouts, rows)
        self.statistics = Statistics(self.setup, self.steps)
        self.observers: list[Observer] = []
        self.state = LocalState(self.setup, self.steps, self.statistics, self.observers, shard)
        if options.check_every:
            self.observers.append(Comparison(self.setup, self.steps))
        self._accepted: set[object] = set()  # last of all: an attachment takes no new attribute from then on

    def begin_step(self, counted: bool = True) -> None:
        """Begins a step, on every rank. ``counted``: else it is averaged exactly, and is no step to memory.

        Raises:
            StateError: the one before has not ended.
            RuntimeError: this session is broken or closed.
        """
        options, reducer = self.setup.options, self.setup.reducer
        self.steps.begin(reducer if self._enabled and counted else Exact(), options.unscale(), counted)

    def submit(
        self,
        source: Source | Bucket,
        target: Target | Bucket | None = None,
        *,
        last: bool = False,
        now: bool = False,
        error: Exception | None = None,
    ) -> Any:
        """Takes a bucket of the running step, and returns at once: a future whose value is the target's tensor, holding
        the mean, or NaN in every element where something failed (``end_step`` says what).

        ``source``'s tensor is written over, and belongs to the session until the mean is there. ``target``: where the
        mean goes, or this rank's row of it where the session is one of rows; None: into ``source``. Both may be of any
        floating type. ``last``: no bucket of this step follows; it then ends while the host goes on, ``end_step`` only
        waits. ``now``: this mean comes before any later bucket begins, for a host that waits for it. ``error``: why
        there is nothing to average: what is sent says so, the step ends with this error here, and with PeerError at
        the others.

        Raises:
            StateError: no step has begun, or its last bucket has come.
            TypeError: something is no bucket; or the source is a sum of two: a host has gradients, and memory is the
                reducer's.
            ValueError: the target lacks a part of the source, or of this rank's row; a tensor is shorter than its
                layout says, of integers, or not flat; or a parameter is none that the session was made for.
            RuntimeError: this session is broken or closed.
        """
        source = source if isinstance(source, Source) else Source(source)
        if source.add is not None:
            raise TypeError("submit(Source(..., add=...)): a host gives its gradient alone, as Source(bucket).")
        target = target if isinstance(target, Target) else Target(target or source.x)
        rows = self.setup.rows
        if rows is not target.row:
            target = target._replace(row=rows)
        x, out, t = source.x, target.out, self.steps.transport
        if not (isinstance(x, Bucket) and isinstance(out, Bucket)):  # pyright: ignore[reportUnnecessaryIsInstance]
            wrong = type(out if isinstance(x, Bucket) else x).__name__  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"submit({wrong}): a flat tensor with its layout is needed: Bucket(flat, layout).")
        a, b = x.flat, out.flat  # a generator over the two would be three calls more for each bucket
        key = x.layout, a.dtype, a.device, a.shape, a.stride(), out.layout, b.dtype, b.device, b.shape, b.stride()
        if key not in self._accepted:
            accept(x, out, t, self.setup.elements if self.setup.named else None, rows)
            self._accepted.add(key)
        return self.steps.submit(source, target, last, now, error)

    def end_step(self) -> Step | None:
        """Says that no bucket follows, and waits until the means are there. Returns the step; None: it had no bucket,
        and does not count. Where the last bucket was not announced (``last``), it waits for peers that end it too:
        several sessions are then ended in the same order on every rank.

        Raises:
            StateError: no step has begun.
            Exception: what went wrong in it: the original error here, PeerError or TransportError at the others.
        """
        return self.steps.end()

    def abandon_step(self) -> None:
        """Gives up a step that has not ended, on every rank after the same bucket: its collectives are finished, and
        what they sent goes back into memory, as in a step that met a NaN. Residuals then hold the gradient of the
        buckets that had come, and send it later; estimates are those of the step before. The step counts in ``step``.
        Without such a step, or without a bucket in it, nothing happens.

        Raises:
            RuntimeError: this session is broken or closed.
        """
        self.steps.abandon()

    def check(self) -> None:
        """Raises where no further step is possible."""
        self.steps.check()

    def close(self) -> None:
        """Ends the thread and closes the transport. A step that is under way is given up."""
        self.steps.close()

    @property
    def reducer(self) -> Reducer:
        """The settled reducer."""
        return self.setup.reducer

    @property
    def transport(self) -> Transport:
        """What carries this session's collectives. Between two steps, and on every rank at the same one, a host may
        start some of its own."""
        self.steps.synchronize()
        return self.steps.transport

    @property
    def step(self) -> int:
        """Averaged backward passes so far: bad and abandoned ones count, discarded and ignored ones do not."""
        self.steps.synchronize()
        return self.steps.scheduler.number

    @property
    def enabled(self) -> bool:
        """Whether the reducer is at work. False averages exactly and keeps residuals. Set it on every rank, at the same
        step: ranks that differ wait for each other until the timeout."""
        return self._enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        if not isinstance(value, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"enabled = {value!r}: give True or False, the same on every rank.")
        self._enabled = value

    def __repr__(self) -> str:
        t = self.steps.transport
        state = "detached" if self.steps.closed else "at work" if self._enabled else "disabled"
        where = f"rank {t.rank} of {t.world}, step {self.steps.scheduler.number}"
        return f"<{type(self).__name__} of {self.reducer!r}, {where}, {state}>"

    def _over(self, flows: list[RunningFlow], bad: bool) -> None:
        step = self.steps.current
        for observer in self.observers:
            observer.after_step(flows, step.exposed if step is not None else 0.0)
