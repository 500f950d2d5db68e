"""A session's steps, from the host's thread: begun, fed with buckets, ended, waited for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

import torch

from ..core.reducer import Reducer
from ..core.source import Source, Target
from ..core.state import StateError
from ..core.transport import Transport, TransportError
from ..transports.worker import Worker
from .host import Host
from .jobs import Job, Step
from .pace import Kind, Pace
from .scheduler import Scheduler


class Steps:
    """What stands between a host and the scheduler, which runs in ``worker`` where there is one.

    A step is *open* from ``begin`` until the host says that no bucket follows, with the last one or by ``end``; only
    then does it run to its end. It is *over* when everything is done that is done after it.
    """

    def __init__(
        self, transport: Transport, scheduler: Scheduler, worker: Worker | None, pace: Pace, host: Host
    ) -> None:
        self.transport, self.scheduler, self.worker = transport, scheduler, worker
        self.pace = pace
        """How the host's backward passes make steps."""
        self.host = host
        """How errors speak of it."""
        self.exposed = 0.0
        """Seconds that the host has waited for buckets with nothing else to do."""
        self.on_broken: Callable[[], object] | None = None
        """Called once when the session breaks: the host stops itself before it starts a step in vain."""
        self.before_asked: Callable[[], object] | None = None
        """Called when state is asked for: a host that is not told where its steps end closes one here that is over."""
        self.closed = False
        self.open = False
        self.current: Step | None = None
        """The one that was last begun."""

    def begin(self, reducer: Reducer, unscale: float, counted: bool) -> None:
        """See ``Session.begin_step``."""
        if self.worker is None:
            self.scheduler.finish_pending(self.scheduler.mark())
        self.check()
        if self.open:
            raise StateError(
                f"begin_step: step {self.scheduler.number} has begun and not ended. Call end_step() after its last "
                f"bucket; where its backward pass raised, abandon_step(), on every rank."
            )
        self.current, self.open = Step(reducer, unscale, reducer.traits.stateful, counted), True
        self.pace.last = Kind.STEP if counted else Kind.EXACT

    def submit(self, source: Source, target: Target, last: bool, now: bool, error: Exception | None) -> Any:
        """See ``Session.submit``."""
        step = self.current
        if step is None or not self.open:
            raise StateError(
                "submit: no step has begun, or its last bucket was submitted already. Call begin_step() before the "
                "first bucket of a step, on every rank."
            )
        self.check()
        scheduler = self.scheduler
        device = self.transport.device
        made: Any = torch.futures.Future  # its constructor's types are those of its value
        future: Any = made(devices=[device] if device.type == "cuda" else None)
        if not now:  # else the mean is there before anybody could give the step up
            step.flats.append(target.out.flat)
            if source.x.flat is not target.out.flat:
                step.flats.append(source.x.flat)
        job = Job(step, source, target, step.buckets, last, future, scheduler.mark(), now, error)
        step.buckets += 1
        self.open = not last
        self._do(partial(scheduler.handle, job))
        return future

    def waiting(self) -> None:
        """Says that the host has nothing left to do but wait."""
        if self.current is not None:
            self.current.waited_from = perf_counter()

    def end(self) -> Step | None:
        """See ``Session.end_step``."""
        step, was_open = self.current, self.open
        self.open = False
        if step is None or step.ended:
            raise StateError("end_step: no step has begun since the last one ended. Call begin_step() first.")
        step.ended = True
        if not step.buckets:
            self.current = None
            return None
        if was_open:
            self._do(partial(self.scheduler.end, step, self.scheduler.mark()))
        step.done.wait()
        self.exposed += step.exposed
        if step.error is not None:
            self._tell_host()
            raise step.error
        return step

    def abandon(self) -> None:
        """See ``Session.abandon_step``. The host has written new gradients into the same buckets by now, and what the
        old flows still decode lands there too: what is there now is put back."""
        step = self.current
        if step is None or not self.open:
            return
        self.check()
        self.open, step.ended = False, True
        if not step.buckets:
            self.current = None
            return
        self.scheduler.follow()
        kept = [flat.clone() for flat in step.flats]
        self._do(partial(self.scheduler.abandon, step, self.scheduler.mark()))
        step.over.wait()
        self.scheduler.follow()
        for flat, content in zip(step.flats, kept, strict=True):
            flat.copy_(content)

    def bypassed(self, sent: int, counted: bool) -> None:
        """Counts what the host averaged by itself, past the scheduler: ``sent`` bytes; ``counted``: a step is over."""
        self.scheduler.sent += sent
        self.scheduler.number += counted
        self.scheduler.latest = None

    def synchronize(self) -> None:
        """Waits until the last step is over, whatever became of it, unless it is open: ``end`` then knows what a peer
        did, too."""
        if self.before_asked is not None and self.scheduler.ends_alone:
            self.before_asked()
        step = self.current
        if step is not None and step.buckets and not self.open:
            if not step.over.is_set():
                self._do(partial(self.scheduler.finish_pending, self.scheduler.mark()))
            step.over.wait()
            self.scheduler.follow()

    def between(self, call: str) -> None:
        """Waits as ``synchronize`` does.

        Raises:
            StateError: a step is open: its payloads are neither in the residuals nor averaged.
        """
        if self.before_asked is not None:
            self.before_asked()
        if self.open:
            raise StateError(
                f"{call}: step {self.scheduler.number} has begun and its backward pass has not ended, or raised, so a "
                f"part of the residuals is under way. {self.host.unfinished.format(call=call)}"
            )
        self.synchronize()

    def check(self) -> None:
        """Raises where no further step is possible."""
        reducer, host = self.scheduler.store.reducer, self.host
        broken = self.scheduler.broken
        if broken is not None:
            was_open, self.open = self.open, False
            if was_open:  # it broke in this very step, and what would follow is in vain
                self._tell_host()
                raise broken
            raise RuntimeError(
                f"{reducer!r}: this {host.what} broke in step {self.scheduler.number - 1} and takes no more gradients: "
                f"{type(broken).__name__}: {broken} Restart from a checkpoint."
            ) from broken
        if self.closed:
            raise RuntimeError(f"{reducer!r}: this {host.what} {host.over}")
        try:
            self.transport.check()
        except TransportError as error:
            raise RuntimeError(f"{reducer!r}: {error} {host.regroup}") from None

    def close(self) -> None:
        """Ends the thread; a step that is under way is given up."""
        self.closed, self.on_broken = True, None
        if self.worker is not None:
            self.worker.close()
        self.transport.close()
        self.scheduler.last = []

    def _tell_host(self) -> None:
        told, self.on_broken = self.on_broken, None
        if told is not None:
            told()

    def _do(self, task: Callable[[], None]) -> None:
        if self.worker is not None:
            self.worker.do(task)
        else:
            task()
