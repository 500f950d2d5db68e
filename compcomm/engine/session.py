"""An attachment: a reducer at work for one model on one rank, whatever the host."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from time import perf_counter
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..adaptive.telemetry import Telemetry
from ..core.compressor import Compressor
from ..core.drive import drive
from ..core.layout import Layout
from ..core.reducer import Arena, Reducer, settle
from ..core.state import State, StateError, Store
from ..core.strides import Order, storage_order
from ..core.transport import TransportError
from ..hosts.auto import Pilot
from ..routes.exact import Exact
from ..state import merging
from ..transports.process_group import ProcessGroup
from ..transports.worker import Worker
from . import replicas, resuming
from .agreement import agree
from .before import Before
from .bypass import Plain
from .options import Options
from .pace import NOTHING, Kind, Pace
from .running_flow import Flight
from .saved import Portable
from .scheduler import Job, Scheduler, Step
from .statistics import (
    Counters,
    Report,
    dense_bytes,
    noun,
    parameter_bytes,
    relative_errors,
)
from .witness import Witness


def decline(error: Exception, group: dist.ProcessGroup | None, device: torch.device) -> NoReturn:
    """Raises ``error`` on a rank that cannot attach, after telling the peers that are in ``Attachment(...)``."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1:
        with suppress(Exception):  # peers that never attach are not waited for long
            transport = ProcessGroup.over(group, device, timedelta(seconds=30))
            agree(transport, {}, error)
    raise error


def nameless(call: str) -> str:
    """Why what needs names cannot be done."""
    return f"{call}: parameters have no names yet. Call state.bind(model) first."


_FORMATS: dict[Order, str] = {(0, 2, 3, 1): "channels_last", (0, 2, 3, 4, 1): "channels_last_3d"}
"""What torch calls these orders of dimensions; another is told as the dimensions from the outermost on."""


def _told(name: str, p: nn.Parameter) -> str:
    """A parameter, as the ranks compare it: a sum over ranks that hold it in unlike orders would mix its elements."""
    order = storage_order(p)
    lies = f" in memory format {_FORMATS.get(order, list(order))}" if order else ""
    return f"{name} {list(p.shape)} {str(p.dtype)[6:]}{lies}"


class Attachment:
    """A reducer at work. Made by ``attach``; every method concerns this rank alone unless it says otherwise.

    ``enabled``: set it to False, on every rank at the same step, to average exactly for a while; residuals are kept.
    """

    def __init__(
        self,
        options: Options,
        parameters: Sequence[tuple[str, nn.Parameter]] | None,
        device: torch.device,
        trial: Callable[[Reducer, Layout], None] | None = None,
        layouts: Sequence[Layout] = (),
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """Collective over the group: makes a group of our own, and compares the configuration.

        ``trial`` is called with the settled reducer and all parameters; what it raises is heard of on every rank.
        ``layouts``: of the buckets that will come, where the host knows them and they may hold pieces of parameters;
        else whole parameters, in whatever buckets. ``facts``: what else must be equal on all ranks, as JSON can hold.

        Raises:
            AgreementError: the ranks differ, or one of them cannot attach.
        """
        from .._version import __version__

        self._enabled = True
        self.pace = Pace()
        """How the host's backward passes make steps."""
        self.witness: Witness | None = None
        """What sees whether optimizers take the means, where the host has parameters with gradients."""
        self.pilot: Pilot | None = None
        """What picks the reducer, where the user left that to ``Auto``."""
        self.plain: Plain | None = None
        """Set where the host's own reduction is faster: nothing goes through the scheduler then."""
        self.guard: Callable[[], object] | None = None
        """Called once when this attachment breaks: the host stops itself before it starts a step in vain."""
        self.unaveraged: Callable[[], Sequence[str]] = tuple
        """Names what trains and is in no bucket, where the host can tell."""
        self.options = options
        self.named = parameters is not None
        self.parameters = list(parameters or ())
        self._exposed, self._resumes = 0.0, 0
        self._last: list[Flight] = []
        self._open: Step | None = None
        self._current: Step | None = None
        self._worker: Worker | None = None
        self._detached = False
        world = dist.get_world_size(options.group)
        patience = options.patience if options.timeout is not None else None
        self._transport = ProcessGroup.over(options.group, device, patience)
        self._device = device
        failure: Exception | None = None
        layout = Layout.of((n, p.shape) for n, p in self.parameters)
        try:
            self.reducer = settle(options.reducer, world)
            if parameters is None and (options.check_every or self.reducer.needs_names):
                what = f"check_every={options.check_every}" if options.check_every else repr(options.reducer)
                raise StateError(
                    f"DDPState: {what} needs the parameters' names. Call state.bind(model) before the first backward "
                    f"pass, or use cc.attach(model, reducer)."
                )
            self._store = Store(self.reducer, self._transport.rank, world, device)
            for expected in layouts or (layout,):
                self._store.declare(expected.row_major)
            if parameters is not None:
                self.reducer.check(layout)
            self.reducer.check_optimizer(options.groups(parameters))
            if trial is not None:
                trial(self.reducer, layout)
        except Exception as error:
            failure = error
        compared = {
            "version of compcomm": __version__,
            "reducer": repr(options.reducer),
            "seed": options.seed,
            "check_every": options.check_every,
            "a scaler": options.scaler is not None,
            "discardable": options.discardable,
            "parameters": [_told(n, p) for n, p in self.parameters],
            **(facts or {}),
        }
        agree(self._transport, compared, failure)
        arena = Arena(device)
        finished = weakref.WeakMethod(self._finished)  # the worker's thread must not keep its owner alive

        def after(flights: list[Flight], bad: bool) -> None:
            method = finished()
            if method is not None:
                method(flights, bad)

        before = Before(options.discardable)
        self._scheduler = Scheduler(self._transport, self._store, arena, options.seed, after, before)
        self._wire_before = self._transport.seconds
        if device.type != "cuda" or self._transport.staged:
            self._worker = Worker(self, "compcomm-scheduler")

    # What the host calls.

    def submit(self, flat: Tensor, layout: Layout, index: int, last: bool, counted: bool = True) -> Any:
        """Takes a bucket of the running step; the future's value is ``flat``, holding the mean. ``counted``: else it is
        averaged exactly, and is no step to memory.

        Raises:
            RuntimeError: this attachment is broken or detached.
        """
        step = self._open
        if self._worker is None and (step is None or index == 0):
            self._scheduler.settle(self._scheduler.mark())
        self.check()
        if step is not None and index == 0:
            self._abandon(step)
        if step is None or index == 0:
            reducer = self.reducer if self.enabled and counted else Exact()
            step = Step(reducer, self.options.unscale(), reducer.stateful, counted)
            self.pace.last = Kind.STEP if counted else Kind.EXACT
        self._open = None if last else step
        self._current = step
        made: Any = torch.futures.Future  # its constructor's types are those of its value
        future: Any = made(devices=[self._device] if self._device.type == "cuda" else None)
        step.flats.append(flat)
        job = Job(step, flat, layout, index, last, future, self._scheduler.mark())
        self._do(partial(self._scheduler.handle, job))
        return future

    def backward_over(self) -> None:
        """Says that the backward pass has nothing left to do but wait."""
        if self._current is not None:
            self._current.waited_from = perf_counter()

    def end_step(self) -> Step | None:
        """Waits until the step that was last begun is over, and returns it.

        Raises:
            Exception: what went wrong in it: the original error here, PeerError or TransportError at the others.
        """
        step = self._current
        if step is not None:
            step.done.wait()
            self._exposed += step.exposed
            if step.error is not None:
                self._warn_host()
                raise step.error
        return step

    def _warn_host(self) -> None:
        guard, self.guard = self.guard, None
        if guard is not None:
            guard()

    def check(self) -> None:
        """Raises where no further step is possible."""
        broken = self._scheduler.broken
        if broken is not None:
            step, self._open = self._open, None
            if step is not None:  # it broke in this very step, and what would follow is in vain
                self._warn_host()
                raise broken
            raise RuntimeError(
                f"{self.reducer!r}: this attachment broke in step {self._scheduler.number - 1} and takes no more "
                f"gradients: {type(broken).__name__}: {broken} Restart from a checkpoint."
            ) from broken
        if self._detached:
            raise RuntimeError(f"{self.reducer!r}: this attachment was detached. Wrap the model in a new DDP(...).")
        try:
            self._transport.check()
        except TransportError as error:
            raise RuntimeError(f"{self.reducer!r}: {error}") from None

    def average_plainly(self, flat: Tensor, last: bool, counted: bool = True) -> Any:
        """The future of a bucket's mean by ``plain``, past the scheduler."""
        assert self.plain is not None
        self.check()
        before = self.plain.sent
        future = self.plain.average(flat)
        self._scheduler.sent += self.plain.sent - before
        self._scheduler.number += last and counted
        self._scheduler.latest = None
        return future

    @property
    def wire(self) -> ProcessGroup:
        """The transport, for whoever starts collectives in the scheduler's own thread."""
        return self._transport

    def switch(self, reducer: Reducer | Compressor) -> None:
        """Averages by another reducer from the next step on. Its memory begins anew, as at attach. Between two steps,
        on every rank at the same one; ``reducer`` must be equal on all.

        Raises:
            ValueError: it does not fit the model or the optimizer. What runs goes on as it was.
        """
        settled = settle(reducer, self._transport.world)
        layout = Layout.of((n, p.shape) for n, p in self.parameters)
        settled.check(layout)
        settled.check_optimizer(self.options.groups(self.parameters))
        store = Store(settled, self._transport.rank, self._transport.world, self._device)
        for expected in (*self._scheduler.layouts, layout):
            store.declare(expected)
        self.options = replace(self.options, reducer=reducer)
        self.reducer, self._store, self._scheduler.store, self._last = settled, store, store, []

    def configuration(self) -> Any:
        """What ``switch`` changes, for ``restore``."""
        return self.options, self.reducer, self._store, self.plain

    def restore(self, configuration: Any) -> None:
        """As it was."""
        self.options, self.reducer, self._store, self.plain = configuration
        self._scheduler.store = self._store

    # What the user calls.

    @property
    def enabled(self) -> bool:
        """Whether the reducer is at work. False averages exactly and keeps residuals. Set it on every rank, at the same
        step: ranks that differ wait for each other until the timeout."""
        return self._enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        if not isinstance(value, bool):
            raise TypeError(f"enabled = {value!r}: give True or False, the same on every rank.")
        self._enabled = value

    def __repr__(self) -> str:
        t = self._transport
        state = "detached" if self._detached else "at work" if self._enabled else "disabled"
        return f"<Attachment of {self.reducer!r}, rank {t.rank} of {t.world}, step {self._scheduler.number}, {state}>"

    @property
    def transport(self) -> ProcessGroup:
        """What carries this attachment's collectives. Between two steps, and on every rank at the same one, a host may
        start some of its own."""
        self.settle()
        return self._transport

    @property
    def step(self) -> int:
        """Averaged backward passes so far, those that were discarded or ignored left out."""
        self.settle()
        return self._scheduler.number

    def report(self) -> Report:
        """What was sent, what it cost and what it lost, by the steps that are over."""
        self.settle()
        s = self._scheduler
        steps = max(1, s.number - s.first)
        sizes = self.elements
        shapes = tuple((n, tuple(p.shape)) for n, p in self.parameters)
        return Report(
            reducer=repr(self.reducer),
            world=s.transport.world,
            steps=s.number - s.first,
            bytes_sent=s.sent / steps,
            bytes_dense=float(dense_bytes(sum(sizes.values()), s.transport.world)),
            kernel_seconds=s.kernel_seconds / steps,
            wire_seconds=(s.transport.seconds - self._wire_before) / steps,
            exposed_seconds=self._exposed / steps,
            state_bytes=self._store.nbytes() + (0 if s.before is None else s.before.nbytes()),
            relative_error=self.errors(),
            review_seconds=s.review_seconds / steps,
            elements=sizes,
            parameter_bytes=dict(
                parameter_bytes(self._now(), shapes, s.transport.world, s.number if self.scheduled() else 1 << 30)
            ),
            choices=self.choices(),
            knob=noun(self.reducer),
        )

    def errors(self) -> dict[str, float | None]:
        """A report's ``relative_error``, alone. It decodes what the last step sent: some passes over the gradient."""
        self.settle()
        return relative_errors(self._last, self._store) if self._open is None else {}

    @property
    def elements(self) -> dict[str, int]:
        """The size of each parameter; before parameters have names, of those that have been in a bucket."""
        if self.named:
            return {n: p.numel() for n, p in self.parameters}
        return {part.name: part.numel for layout in self._scheduler.layouts for part in layout.segments}

    def counters(self) -> Counters:
        """What has been sent and how long it took: sums, at once, while a step's review may still go on."""
        s = self._scheduler
        return Counters(
            step=s.number,
            steps=s.number - s.first,
            bytes_sent=s.sent,
            kernel_seconds=s.kernel_seconds,
            wire_seconds=s.transport.seconds - self._wire_before,
            exposed_seconds=self._exposed,
            review_seconds=s.review_seconds,
            controlled=next(self.reducer.controllers(()), None) is not None,
            resumes=self._resumes,
        )

    def _now(self) -> Reducer:
        """The reducer with its decisions taken."""
        layout = Layout.of((n, p.shape) for n, p in self.parameters)
        chosen = next(self.reducer.controllers(()), None) is not None
        return self.reducer.now(State(self._store, layout)) if chosen else self.reducer

    def choices(self) -> dict[str, float]:
        """The setting of the next step by parameter: the density, the bits or the rank that a controller chose or a
        schedule gives. Empty where there is neither."""
        self.settle()
        return {**self.scheduled(), **self.reducer.choices(self._store.segments(), self._store)}

    def scheduled(self) -> dict[str, float]:
        """What schedules alone give in the next step; at once, while a step's review may still go on."""
        return self.reducer.scheduled(self._store.segments(), self._scheduler.number)

    def telemetry(self) -> list[Telemetry]:
        """What each controller measured last, the same on every rank: the norm of every parameter's gradient, and the
        error and the bytes of every setting that it may have."""
        self.settle()
        found = self.reducer.controllers(self._store.segments())
        return [controller.telemetry(segments, self._store) for controller, segments in found]

    def state_dict(self) -> dict[str, Any]:
        """This rank's state, exact: tensors, integers and strings. Save every rank's.

        All of it lies under one key, "rank 2 of 4": ``torch.distributed.checkpoint`` keeps one of several equal keys.

        Raises:
            StateError: parameters have no names yet: ``bind(model)`` first; or a backward pass has not ended.
        """
        self._ready("state_dict")
        content = {
            **self._identity(),
            **self._picked(),
            "step": self._scheduler.number,
            "slots": self._store.state_dict(),
        }
        return {self._place: content}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resumes bit for bit from this rank's ``state_dict``; what other ranks saved may lie beside it. Collective:
        every rank calls it, between the same two steps.

        Raises:
            StateError: on every rank, where on one of them it is of another reducer, rank, number of ranks, seed, step
                or model, or parameters have no names yet. On this rank alone, where its backward pass has not ended:
                collectives are under way then, and no other can be told. The running state is unchanged.
        """
        self._load("load_state_dict", state, merged=False)

    def portable_state_dict(self) -> dict[str, Any]:
        """The state of all ranks, merged: for another number of workers. Collective: call it on every rank, at the same
        step; every rank gets the same.

        Keys: "version", "reducer", "seed", "step", and "slots", ``{slot: {parameter: tensor}}``: residuals become their
        mean over the ranks, and what owners still owe is added to it (``compcomm.state.merging`` has the rules). It
        knows nothing of ranks and buckets. Never more than two copies of the state are in memory, this one and the
        running.

        Raises:
            StateError: parameters have no names yet: ``bind(model)`` first; or a backward pass has not ended.
            AgreementError: another rank cannot, or is at another step.
        """
        failure: Exception | None = None
        try:
            self._ready("portable_state_dict")
        except StateError as error:
            failure = error
        agree(self._transport, {"step": self._scheduler.number}, failure, "portable_state_dict")
        slots = drive(merging.merge(self._store), self._transport)
        return {**self._origin(), **self._picked(), "step": self._scheduler.number, "slots": slots}

    def load_portable_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resumes from a ``portable_state_dict`` of any number of workers: every rank takes its part. Collective:
        every rank calls it, between the same two steps, with the same state.

        Raises:
            StateError: on every rank, where on one of them it is of another reducer, seed or model, or parameters have
                no names yet. On this rank alone, where its backward pass has not ended: collectives are under way
                then, and no other can be told. The running state is unchanged.
        """
        self._load("load_portable_state_dict", state, merged=True)

    def prepare(self, call: str, state: Any, merged: bool, undo: ExitStack) -> tuple[int, Callable[[], None]]:
        """For whoever asks the ranks itself, between two steps: the step of ``state``, exact or ``merged``, and what
        takes it. Local, and nothing is changed that ``undo`` does not bring back.

        Raises:
            StateError: it cannot be taken.
        """
        identity = self._origin if merged else self._identity
        if self.pilot is not None:
            known = state.get(self._place) if isinstance(state, Mapping) and not merged else state
            undo.enter_context(self.pilot.follow(known, identity()))
        here = identity()  # what the pilot follows may be another reducer
        step, slots = resuming.portable(state, here) if merged else resuming.exact(state, self._place, here)
        if merged:
            merging.check(self._store, slots)
        else:
            self._store.check(slots)

        def take() -> None:
            if merged:
                merging.adopt(self._store, slots)
            else:
                self._store.load_state_dict(slots)
            self.resume(step)

        return step, take

    @property
    def portable(self) -> Portable:
        """The portable state as an object with ``state_dict`` and ``load_state_dict``, for frameworks that save one
        rank's answer: ``accelerator.register_for_checkpointing(hook.portable)``."""
        return Portable(self)

    @property
    def passes(self) -> int:
        """How many backward passes make a step, 1 at first. With ``hook.passes = K`` gradients of the first K - 1
        passes add up locally and nothing is sent; the K-th averages the sum, as if the others had run under
        ``no_sync()``. Set it between two optimizer steps, on every rank."""
        return self.pace.passes

    @passes.setter
    def passes(self, value: int) -> None:
        self.pace.passes = value

    def ignoring(self, average: bool = True) -> AbstractContextManager[None]:
        """``with hook.ignoring(): loss.backward()``: a pass that memory does not hear of, on every rank the same.

        Its gradients are averaged exactly; with ``average=False`` they stay this rank's own, and nothing is sent.
        Memory, the step's number and what is drawn at random are as if there had been no such pass. For gradients that
        are thrown away, as those of a discriminator when its generator learns.
        """
        return self.pace.ignoring(average)

    def discard(self) -> None:
        """Takes back what the last backward pass put into memory, bit for bit: as if the pass had not been. For a step
        that the script skips. Local, nothing is sent: call it on every rank, after the pass and before the next one;
        the mean that was delivered is void, so zero the gradients.

        A reducer that remembers needs ``attach(..., discardable=True)``: that keeps a copy of memory from before the
        step. A pass that memory heard nothing of (``ignoring()``, the first of several ``passes``) has nothing to take
        back, and the gradients of a step that is not complete are given up. Only the last pass can be taken back.

        Raises:
            StateError: nothing is left to take back: no pass has been averaged since attach, load_state_dict, forget,
                rescale_error, bind or the last discard; or its mean went to an optimizer; or memory was not kept; or a
                backward pass has not ended.
        """
        self._between_steps("discard")
        self.check()
        if self.pace.last is None:
            raise StateError(NOTHING)
        if self.pace.last is Kind.STEP:
            self._take_back()
        if self.pace.last in (Kind.STEP, Kind.PART):
            self.pace.restart()
        self.pace.last = None

    def _take_back(self) -> None:
        s, step = self._scheduler, self._scheduler.latest
        bad = step is not None and step.bad
        if self.witness is not None and self.witness.applied and not bad:
            raise StateError(
                f"discard: an optimizer has stepped since step {s.number - 1} was averaged, so that gradient is in the "
                f"model. Call it before the optimizer's step. (A pass under no_sync() leaves no trace in memory, and "
                f"needs no discard.)"
            )
        if step is not None and step.recorded:
            raise StateError(
                "discard: the last step was recorded as a CUDA graph, whose replays are not seen. Use ignoring() while "
                "recording, or load_state_dict() to go back."
            )
        if step is not None and step.store is s.store and step.reducer.stateful and not step.kept:
            raise StateError(
                f"discard: {self.reducer!r} remembers step {s.number - 1}, and what it held before was not kept. Use "
                f"cc.attach(..., discardable=True), or DDPState(..., discardable=True): it takes as many bytes as "
                f"the state. A pass that is known to be thrown away can run inside `with hook.ignoring():`."
            )
        s.take_back()
        self._last = []
        if self.witness is not None:
            self.witness.voided()

    def forget(self) -> None:
        """Memory begins anew, as at attach. Local; call it on every rank at the same step.

        Raises:
            StateError: a backward pass has not ended.
        """
        self._between_steps("forget")
        self.pace.restart()
        self._store.under_way.clear()
        for entry in self._store.entries():
            entry.tensor.fill_(entry.slot.fill)

    def rescale_error(self, old_lr: float, new_lr: float) -> None:
        """Says that the learning rate goes from ``old_lr`` to ``new_lr``, before the next step. Local: nothing is sent;
        call it on every rank at the same step.

        Residuals hold gradients, and what they will move the parameters by is the learning rate times that. With a new
        rate they would move them by another amount than at the time when they were held back. This multiplies every
        slot that is declared ``pending`` by old_lr/new_lr, so that what is still to be applied keeps its size: error
        feedback is then the published form, which keeps rate times gradient (the rate inside the memory). Without it a
        schedule's change scales what is pending too: a small and usual deviation.

        Pending are the residuals of ``ErrorFeedback`` and ``PowerSGD``, ``EControl``'s error, ``DGC``'s velocity and
        what their owners keep. Estimates of the gradient itself, as EF21 keeps, are not, and stay as they are.

        Raises:
            ValueError: a rate is not a positive number.
            StateError: a backward pass has not ended.
        """
        for name, rate in (("old_lr", old_lr), ("new_lr", new_lr)):
            if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < float("inf"):
                raise ValueError(
                    f"rescale_error(old_lr={old_lr!r}, new_lr={new_lr!r}): {name} is not a positive number. What is "
                    f"pending at a rate of zero cannot be kept in size: call it with the next rate above zero."
                )
        self._between_steps("rescale_error")
        self.pace.last = None
        if old_lr != new_lr:
            merging.rescale(self._store, old_lr / new_lr)

    def detach(self) -> None:
        """Stops the worker. A step that is under way is given up; the model needs a new DDP(...) to train on."""
        self._detached, self.guard = True, None
        if self._worker is not None:
            self._worker.close()
        self._transport.close()
        self._last = []

    def rename(self, names: Mapping[str, str], parameters: Sequence[tuple[str, nn.Parameter]]) -> None:
        """Gives parameters their real names. On every rank at the same step: random numbers are keyed by name.

        Raises:
            StateError: a backward pass has not ended.
        """
        self._between_steps("bind")
        self.pace.last = None
        self._store.rename(names)
        self.parameters, self.named, self._last = list(parameters), True, []
        self._store.declare(Layout.of((n, p.shape) for n, p in self.parameters))
        self._scheduler.layouts.clear()

    def admit(self, parameters: Sequence[tuple[str, nn.Parameter]]) -> None:
        """Takes parameters that the host averages too, as its first step shows. On every rank, in the same order.

        Raises:
            ValueError: the reducer cannot take them.
        """
        self.reducer.check(Layout.of((n, p.shape) for n, p in (*self.parameters, *parameters)))
        self.parameters.extend(parameters)

    # Inside.

    def _load(self, call: str, state: Any, merged: bool) -> None:
        self._between_steps(call)  # first: while collectives are under way, nothing can be asked
        with ExitStack() as undo:
            failure: Exception | None = None
            step, take = 0, self.settle
            try:
                self._ready(call)
                step, take = self.prepare(call, state, merged, undo)
            except Exception as error:
                failure = error
            facts: dict[str, Any] = {"step": step, "reducer": repr(self.options.reducer)}
            if self.pilot is not None:
                facts["what Auto picked"] = [self.pilot.decided, self.plain is not None]
            resuming.consent(self._transport, facts, failure, call)
            take()

    @property
    def _place(self) -> str:
        return f"rank {self._transport.rank} of {self._transport.world}"

    def _origin(self) -> dict[str, Any]:
        given = self.options.reducer
        reducer = given.for_any_world() if isinstance(given, Reducer) else given
        return {"version": resuming.VERSION, "reducer": repr(reducer), "seed": self.options.seed}

    def _picked(self) -> dict[str, Any]:
        return {} if self.pilot is None else {"picked": self.pilot.decided}

    def _identity(self) -> dict[str, Any]:
        t = self._transport
        return {**self._origin(), "reducer": repr(self.reducer), "world": t.world, "rank": t.rank}

    def _ready(self, call: str) -> None:
        """Between two steps, with parameters that have names."""
        self._between_steps(call)
        if not self.named:
            raise StateError(nameless(call))

    def resume(self, step: int) -> None:
        """The next step has this number: random numbers and headers depend on it. Between two steps, on every rank."""
        self._scheduler.resume(step)
        self.pace.restart()
        self._resumes += 1
        self._wire_before, self._exposed = self._transport.seconds, 0.0
        self._last = []

    def overlook(self, seconds: float) -> None:
        """Leaves so many seconds on the wire out of reports: they were not training's."""
        self._wire_before += seconds

    def _do(self, task: Callable[[], None]) -> None:
        if self._worker is not None:
            self._worker.do(task)
        else:
            task()

    def _abandon(self, step: Step) -> None:
        """Ends an old step before a new one begins. The host has written new gradients into the same buckets by now,
        and what the old flows still decode lands there too: the gradients are put back."""
        self._scheduler.follow()
        kept = [flat.clone() for flat in step.flats]
        self._do(partial(self._scheduler.abandon, step, self._scheduler.mark()))
        step.over.wait()
        self._scheduler.follow()
        for flat, content in zip(step.flats, kept, strict=True):
            flat.copy_(content)

    def settle(self) -> None:
        """Waits until the last step is over, whatever became of it: ``end_step`` then knows what a peer did, too."""
        if self._current is not None and self._open is None:
            if not self._current.over.is_set():
                self._do(partial(self._scheduler.settle, self._scheduler.mark()))
            self._current.over.wait()
            self._scheduler.follow()

    def _between_steps(self, call: str) -> None:
        """Waits as ``settle`` does; while a step is open, its payloads are neither in the residuals nor averaged."""
        if self._open is not None:
            raise StateError(
                f"{call}: step {self._scheduler.number} has begun and its backward pass has not ended, or raised, so a "
                f"part of the residuals is under way. After an error, run model.reducer._reset_state() and one more "
                f"backward pass on every rank, then call {call} again; or go back to the last checkpoint."
            )
        self.settle()

    def _finished(self, flights: list[Flight], bad: bool) -> None:
        self._last = [] if bad else flights
        if self.pilot is not None and self.pilot.awake:
            self.pilot.after(flights, self._current.exposed if self._current is not None else 0.0)
        every = self.options.check_every
        if every and self._scheduler.number % every == 0:
            number, alone = self._scheduler.number, self.unaveraged()
            replicas.check(self._transport, self.parameters, number, alone=alone)
