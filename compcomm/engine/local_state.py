"""What a session remembers: saved, resumed, merged for another number of workers, rescaled, taken back.

Of two kinds of checkpoints the *local* one is this rank's own state, bit for bit; the *merged* one is that of all ranks
and knows nothing of ranks and buckets (``compcomm.state.merging`` has the rules).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from ..core.drive import drive
from ..core.reducer import Reducer
from ..core.state import StateError
from ..core.structure import world_independent
from ..core.transport import Transport
from ..state import merging
from . import resuming
from .agreement import agree
from .observer import Observer
from .setup import Setup, nameless
from .statistics import Statistics
from .steps import Steps


@dataclass(frozen=True)
class Shard:
    """For a session whose ranks all hold shard ``number`` of ``count`` of each parameter, beside the sessions of the
    other shards. ``transport``: between the ranks of all of them. ``shapes``: of all parameters, by name, as its
    layouts have them: no rank need hold a part of each."""

    transport: Transport
    number: int
    count: int
    shapes: Mapping[str, tuple[int, ...]]


class LocalState:
    """The state of one session, on this rank: ``session.state``."""

    def __init__(
        self,
        setup: Setup,
        steps: Steps,
        statistics: Statistics,
        observers: Sequence[Observer],
        shard: Shard | None = None,
    ) -> None:
        self._setup, self._steps, self._statistics, self._observers = setup, steps, statistics, observers
        self._shard = shard

    def save(self) -> dict[str, Any]:
        """This rank's own state, exact; see ``Attachment.state_dict``."""
        self._ready("state_dict")
        scheduler = self._steps.scheduler
        content = {**self._identity(), **self._saved(), "step": scheduler.number}
        return {self._place: {**content, "slots": self._setup.store.state_dict()}}

    def save_merged(self) -> dict[str, Any]:
        """That of all ranks, for any number of them. Collective; see ``Attachment.portable_state_dict``."""
        failure: Exception | None = None
        try:
            self._ready("portable_state_dict")
        except StateError as error:
            failure = error
        transport, number = self._everyone, self._steps.scheduler.number
        agree(transport, {"step": number}, failure, "portable_state_dict")
        slots = drive(merging.merge(self._setup.store, self._shapes), transport)
        return {**self._origin(), **self._saved(), "step": number, "slots": slots}

    def load(self, call: str, state: Any, merged: bool) -> None:
        """Takes what ``save`` gave or, if ``merged``, ``save_merged``. Collective; see ``Attachment.load_state_dict``
        and ``load_portable_state_dict``. ``call``: how errors name it."""
        self._steps.between(call)  # first: while collectives are under way, nothing can be asked
        with ExitStack() as undo:
            failure: Exception | None = None
            step, take = 0, self._steps.synchronize
            try:
                self._ready(call)
                step, take = self.prepare(call, state, merged, undo)
            except Exception as error:
                failure = error
            facts: dict[str, Any] = {"step": step, "reducer": repr(self._setup.options.reducer)}
            for observer in self._observers:
                facts |= observer.agreed()
            resuming.consent(self._everyone, facts, failure, call)
            take()

    def prepare(self, call: str, state: Any, merged: bool, undo: ExitStack) -> tuple[int, Callable[[], None]]:
        """For whoever asks the ranks itself, between two steps: the step of ``state``, local or ``merged``, and what
        takes it. Local, and nothing is changed that ``undo`` does not bring back.

        Raises:
            StateError: it cannot be taken.
        """
        identity = self._origin if merged else self._identity
        for observer in self._observers:
            known = state.get(self._place) if isinstance(state, Mapping) and not merged else state
            undo.enter_context(observer.restoring(known, identity()))
        here = identity()  # what an observer has restored may be another reducer
        step, slots = resuming.merged(state, here) if merged else resuming.local(state, self._place, here)
        store = self._setup.store
        if merged:
            merging.check(store, slots, self._shapes)
        else:
            store.check(slots)

        def take() -> None:
            if merged:
                merging.load_merged(store, slots, self._shapes)
            else:
                store.load_state_dict(slots)
            self.resume(step)

        return step, take

    def resume(self, step: int) -> None:
        """The next step has this number: random numbers and headers depend on it. Between two steps, on every rank."""
        self._steps.scheduler.resume(step)
        self._steps.pace.restart()
        self._statistics.restart()

    def reset(self) -> None:
        """See ``Attachment.reset_state``."""
        self._steps.between("reset_state")
        self._steps.pace.restart()
        store = self._setup.store
        store.under_way.clear()
        for entry in store.entries():
            entry.tensor.fill_(entry.slot.fill)

    def rescale(self, old_lr: float, new_lr: float) -> None:
        """See ``Attachment.rescale_error``."""
        for name, rate in (("old_lr", old_lr), ("new_lr", new_lr)):
            if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < float("inf"):
                raise ValueError(
                    f"rescale_error(old_lr={old_lr!r}, new_lr={new_lr!r}): {name} is not a positive number. What is "
                    f"pending at a rate of zero cannot be kept in size: call it with the next rate above zero."
                )
        self._steps.between("rescale_error")
        self._steps.pace.last = None
        if old_lr != new_lr:
            merging.rescale(self._setup.store, old_lr / new_lr)

    def take_back(self, applied: bool) -> None:
        """All that the last step put into memory; see ``Attachment.discard``. ``applied``: whether an optimizer has
        taken a mean since.

        Raises:
            StateError: it cannot be taken back.
        """
        s = self._steps.scheduler
        step = s.latest
        bad = step is not None and step.bad
        if applied and not bad:
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
        if step is not None and step.store is s.store and step.reducer.traits.stateful and not step.kept:
            raise StateError(
                f"discard: {self._setup.reducer!r} remembers step {s.number - 1}, and what it held before was not "
                f"kept. Use cc.attach(..., discardable=True), or DDPState(..., discardable=True): it takes as many "
                f"bytes as the state. A pass that is known to be thrown away can run inside `with hook.ignoring():`."
            )
        s.take_back()

    @property
    def _everyone(self) -> Transport:
        """Between all ranks whose memory belongs together."""
        return self._steps.transport if self._shard is None else self._shard.transport

    @property
    def _shapes(self) -> Mapping[str, tuple[int, ...]] | None:
        return None if self._shard is None else self._shard.shapes

    @property
    def _place(self) -> str:
        own = f"rank {self._steps.transport.rank} of {self._steps.transport.world}"
        return own if self._shard is None else f"{own}, shard {self._shard.number} of {self._shard.count}"

    def _origin(self) -> dict[str, Any]:
        options = self._setup.options
        given = options.reducer
        reducer = world_independent(given) if isinstance(given, Reducer) else given
        return {"version": resuming.VERSION, "reducer": repr(reducer), "seed": options.seed}

    def _identity(self) -> dict[str, Any]:
        t = self._steps.transport
        return {**self._origin(), "reducer": repr(self._setup.reducer), "world": t.world, "rank": t.rank}

    def _saved(self) -> dict[str, Any]:
        return {name: value for observer in self._observers for name, value in observer.saved().items()}

    def _ready(self, call: str) -> None:
        """Between two steps, with parameters that have names."""
        self._steps.between(call)
        if not self._setup.named:
            raise StateError(nameless(call, self._setup.options.host))
