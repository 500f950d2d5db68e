"""Auto: measures the first steps, picks what pays on this link, and gets out of the way where nothing does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import Any, Protocol

import torch

from ..core.collectives import AllReduceMax, Broadcast
from ..core.compressor import Compressor
from ..core.description import Described, parse
from ..core.layout import Layout
from ..core.reducer import Reducer
from ..core.state import StateError
from ..core.structure import check_optimizer
from ..core.transport import Transport
from ..engine.observer import Observer
from ..engine.running_flow import RunningFlow
from ..engine.session import Session
from ..routes.choose import settle
from ..routes.exact import Exact
from .bypass import Bypass

SKIPPED_STEPS = 3
"""Steps that are not measured: DDP cuts its buckets anew, memory is touched for the first time."""


@dataclass(frozen=True, repr=False)
class Auto(Described):
    """``attach(model, cc.Auto())``: averages exactly for the first steps and measures them, the link and the kernels;
    then predicts a step of every method, and goes on with the fastest.

    It stays with no compression unless a method is predicted to save more than ``margin`` of a step; DDP then averages
    as it does without a hook. A pick is put to the test: it goes on only if its own first steps do save that much of
    the exact ones; else Auto goes back, and what a residual holds by then is dropped. Lines on rank 0 say what was
    picked and why. The pick is the same on all ranks and is kept in checkpoints. Timing the kernels holds one step up
    for some seconds. A step that is discarded counts as one that was measured: it took its time too.

    Only time is weighed, of methods close to each other the one that loses less: how many steps a run needs with each,
    no one knows beforehand.

    Args:
        methods: reducers or compressors to choose from, or their texts; None: those that ``python -m compcomm plan``
            compares.
        steps: how many are measured, after three that are not, before a pick and after it.
        margin: the least share of a step that compression must save.
    """

    methods: tuple[Reducer | Compressor, ...] | None = None
    steps: int = 10
    margin: float = 0.05

    def __post_init__(self) -> None:
        if self.methods is not None:
            given = tuple(self.methods) if isinstance(self.methods, list | tuple) else (self.methods,)
            given = tuple(parse(m) if isinstance(m, str) else m for m in given)
            if not given or not all(isinstance(m, Reducer | Compressor) for m in given):
                raise ValueError(
                    f"Auto(methods={self.methods!r}): give reducers to choose from, as (TopK(ratio=0.01),), or None."
                )
            object.__setattr__(self, "methods", given)
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 2:
            raise ValueError(f"Auto(steps={self.steps!r}): a number of steps to measure, 2 or more.")
        number = isinstance(self.margin, int | float) and not isinstance(self.margin, bool)
        if not number or not 0.0 <= self.margin < 1.0:
            raise ValueError(f"Auto(margin={self.margin!r}): a share of a step, in [0, 1).")

    @property
    def unmeasured(self) -> str:
        """Why it is of no use on an accelerator."""
        asked = "python -m compcomm plan"
        return f"it times kernels on the CPU alone, so far. Ask {asked}, and give the reducer that it names."

    def announce(self, world: int, kind: str = "rank") -> str:
        """What it will do, in one line. ``kind``: what there are ``world`` of."""
        text = f"compcomm: {self!r} {'on' if kind == 'rank' else 'between'} {world} {kind}{'s' * (world != 1)}"
        if world == 1:
            return f"{text}: nothing to send"
        return (
            f"{text}: averages exactly for {SKIPPED_STEPS + self.steps + 1} steps, then times the link and the kernels "
            f"for some seconds, and picks what is fastest here"
        )


class Proposal(Protocol):
    """What a planner says: the methods it compared, the first of which is DDP without a hook."""

    @property
    def methods(self) -> Sequence[Any]: ...

    def pick(self, margin: float) -> int: ...

    def why(self, picked: int) -> str: ...


Planner = Callable[..., Proposal]
"""``planner(transport, layouts, compute, methods, dtype, measured)``: see ``compcomm.plan.in_run.propose``."""


class AutoController(Observer):
    """An ``Auto`` at work for one session: hears of every step until its pick has stood the test.

    ``make_bypass``: DDP's own reduction, for when nothing is to be compressed; ``bypass`` is it, where that is so
    (None: the session averages exactly). ``waits``: the host waits for every mean before its backward pass goes on.
    """

    planner: Planner | None = None
    """The package puts one here: the planner is above the hosts, and loaded when something is to be picked."""

    def __init__(
        self, auto: Auto, session: Session, make_bypass: Callable[[], Bypass | None], waits: bool = False
    ) -> None:
        self._waits = waits
        self.auto, self._session, self._make_bypass = auto, session, make_bypass
        self.bypass: Bypass | None = None
        self.decided = False
        self._limit: float | None = None
        self._exact = 0.0
        self.line = ""
        self._ends: list[float] = []
        self._exposed: list[float] = []

    @property
    def measuring(self) -> bool:
        """Whether it wants to hear of further steps."""
        return not self.decided or self._limit is not None

    @property
    def _transport(self) -> Transport:
        return self._session.steps.transport

    @property
    def _everyone(self) -> Transport:
        return self._session.steps.scheduler.everyone

    def after_step(self, flows: Sequence[RunningFlow], exposed: float) -> None:
        """Takes a step's end in; after the last that is measured, picks. On every rank after the same step."""
        if not self.measuring:
            return
        self._ends.append(perf_counter())
        self._exposed.append(exposed)
        if self._transport.world == 1:
            self.decided = True
        if self.measuring and len(self._ends) == SKIPPED_STEPS + self.auto.steps + 1:
            if self.decided:
                self._judge()
            else:
                self._pick([f.layout for f in flows])

    def _pick(self, layouts: Sequence[Layout]) -> None:
        planner, transport = type(self).planner, self._transport
        assert planner is not None
        before = transport.seconds
        step, exposed = self._measured()
        methods = None if self.auto.methods is None else [m for m in self.auto.methods if self._fits(m)]
        found = planner(
            transport, layouts, max(0.0, step - exposed), methods, self._dtype(), step,
            rows=self._session.setup.rows, waits=self._waits,
        )  # fmt: skip
        said = torch.tensor([float(found.pick(self.auto.margin))], dtype=torch.float64)
        _run(self._everyone, Broadcast(said))  # where nodes have several ranks, all of them decide as one
        picked = int(said)
        self.decide(found.methods[picked].reducer, found.why(picked))
        if picked:
            self._exact, self._limit = step, step * (1 - self.auto.margin)
            self._ends, self._exposed = [], []
        self._session.statistics.exclude_from_timing(transport.seconds - before)

    def _judge(self) -> None:
        """Whether steps are as much shorter as they should be; if not, it is as if nothing had been picked."""
        taken, limit = self._session.setup.options.reducer, self._limit
        step, _ = self._measured()
        self._limit = None
        if limit is not None and step > limit:
            self.decide(
                None,
                f"Auto goes back to no compression: steps take {1e3 * step:.4g} ms with {taken!r} and "
                f"{1e3 * self._exact:.4g} ms without",
            )

    def _measured(self) -> tuple[float, float]:
        """Seconds of a step, and those in which it waited, on the slowest rank; medians."""
        whole = median(b - a for a, b in pairwise(self._ends[SKIPPED_STEPS:]))
        found = torch.tensor([whole, median(self._exposed[SKIPPED_STEPS + 1 :])], dtype=torch.float64)
        _run(self._everyone, AllReduceMax(found))
        step, exposed = found.tolist()
        return step, exposed

    def _dtype(self) -> torch.dtype:
        """Of most of the gradients."""
        sizes: dict[torch.dtype, int] = {torch.float32: 0}
        for _, p in self._session.setup.parameters:
            sizes[p.dtype] = sizes.get(p.dtype, 0) + p.numel()
        return max(sizes, key=lambda d: sizes[d])

    def _fits(self, method: Any) -> bool:
        setup = self._session.setup
        try:
            settled = settle(method, self._transport.world, rows=setup.rows)
            if settled.traits.named and not setup.named:
                return False
            settled.check(setup.layout)
            check_optimizer(settled, setup.options.groups(setup.parameters))
        except ValueError:
            return False
        return True

    def saved(self) -> Mapping[str, Any]:
        return {"picked": self.decided}

    def agreed(self) -> Mapping[str, Any]:
        return {"what Auto picked": [self.decided, self.bypass is not None]}

    @contextmanager
    def restoring(self, saved: Any, here: Mapping[str, Any]) -> Generator[None]:
        """Picks what a checkpoint's run had picked, while that is loaded; what cannot be loaded changes nothing.

        ``here``: what this run says of itself; where the checkpoint says something else, loading will refuse it.
        """
        setup, decided, limit, bypass = self._session.setup, self.decided, self._limit, self.bypass
        before = setup.configuration()
        goes_on = ""
        alike = isinstance(saved, Mapping) and all(saved.get(n) == v for n, v in here.items() if n != "reducer")
        try:
            if alike and saved.get("picked") is True:
                try:
                    method = parse(str(saved.get("reducer")))
                except ValueError as error:
                    raise StateError(f"load_state_dict: the reducer of the checkpoint is none: {error}") from None
                self.decide(None if method == Exact() else method)
                goes_on = "no compression" if method == Exact() else repr(method)
            elif alike and self.decided:
                self.decided, self.bypass = False, None
                self._ends, self._exposed = [], []
                setup.switch(Exact())
            self._limit = None
            yield
        except BaseException:
            setup.restore(before)
            self.decided, self._limit, self.bypass = decided, limit, bypass
            raise
        if goes_on:
            self._say(f"Auto goes on with {goes_on}, which it had picked before")

    def decide(self, method: Reducer | Compressor | None, why: str = "") -> None:
        """From the next step on: ``method``, or DDP's own reduction."""
        setup = self._session.setup
        self.decided, self._limit = True, None
        setup.switch(Exact() if method is None else method)
        watched = setup.options.check_every > 0  # replicas are compared after each of the session's steps
        self.bypass = self._make_bypass() if method is None and not watched else None
        if why:
            self._say(why)

    def _say(self, line: str) -> None:
        self.line = line
        if self._everyone.rank == 0:
            print(f"compcomm: {line}", file=sys.stderr, flush=True)


def _run(transport: Any, op: Any) -> None:
    transport.start(op).wait()
