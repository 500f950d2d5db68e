"""What the controllers share: when they gather, measure, exchange and decide, and how a decision takes effect."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from ..combine.candidates import (
    grid,
    nearest,
    numbers,
    roomy,
)
from ..combine.per_parameter import assigned, check_assignable
from ..combine.setting import (
    field,
    refuse_inner,
    setting,
    tuned,
)
from ..combine.wrapper import Wrapper, inside_feedback
from ..core.background import Background
from ..core.collectives import AllReduce, Broadcast
from ..core.context import Context
from ..core.header import PeerError
from ..core.layout import Layout, Segment
from ..core.reducer import Flow, Reducer
from ..core.source import Source, Target
from ..core.state import (
    Merge,
    Slot,
    State,
    Store,
)
from ..core.structure import Between, Decides
from ..core.traits import Promises, Traits, weakest
from ..feedback import slabs
from ..ops.work import kept
from . import measuring
from .measuring import Layer
from .telemetry import Table, Telemetry

_FAILED, _KEPT = 1.0, 2.0
LAG = 5
"""Steps that measuring, and then deciding, may take in the background."""


@dataclass(frozen=True, repr=False)
class Controller(Wrapper, Decides, ABC, abstract=True):
    """Base of the controllers: every ``every`` steps each parameter gets the setting (density, bits or rank) that
    ``decide`` gives it, and its memory stays as it is. To write one, give ``decide``.

    A period, with lag = min(5, (every - window)/2):

    ============================= =================================================================================
    its last ``window`` steps     the gradients are gathered: sum of what comes in (under feedback that includes the
                                  residual), one pass over them
    then, for ``lag`` steps       each rank measures its share of the parameters, in the background
    one message                   an all-reduce of 8 (m + 1)(1 + P) bytes: all ranks have the same telemetry
    for ``lag`` steps more        rank 0 decides, in the background
    one message                   a broadcast of 8 m bytes: all ranks have the same settings from here on
    ============================= =================================================================================

    So a decision takes effect at a step that is known beforehand, and a run can be repeated bit for bit. Exact
    parameters are left alone. Inside a feedback scheme it sees what the scheme sends, outside the gradient.

    State by parameter: "*.gathered", fp32, an element each, MEAN; "*.choice" and "*.telemetry", 1 and 2 + P numbers,
    equal on all ranks (REPLICATED). PowerSGD's Q has room for the largest rank; columns that come into use are drawn
    anew, equally on all ranks.
    """

    if TYPE_CHECKING:
        every: int
        window: int | None

        @property
        def candidates(self) -> Any: ...

    measures: ClassVar[bool] = True
    """Whether ``decide`` asks for errors, and not for norms alone."""
    guided: ClassVar[bool] = False
    """Whether ``decide`` heeds ``Telemetry.reference``, so that another controller inside makes sense."""

    def __post_init__(self) -> None:
        super().__post_init__()
        call = type(self).__name__
        for name, least in (("every", 1), ("window", 1)):
            value = getattr(self, name)
            if value is None and name == "window":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{call}({name}={value!r}): a number of steps, an integer, {least} or more.")
        if self.gathers > self.every:
            raise ValueError(f"{call}(every={self.every}, window={self.window}): a window is at most a period long.")
        base = setting(call, self.reducer)
        check_assignable(call, self.reducer)
        if isinstance(self.reducer, Controller) and (not self.guided or self.reducer.guided):
            raise ValueError(
                f"{call}({self.reducer!r}): two controllers of one setting. Only LGreCo goes around another one, such "
                f"as LGreCo(Accordion(...))."
            )
        refuse_inner(call, self.core)
        inner = self.reducer
        if isinstance(inner, Controller) and (inner.every % self.every or 2 * inner.lag > self.lag):
            same = f"every={inner.every}"
            inside = f"{same}, window={inner.every}" if inner.lag else same
            raise ValueError(
                f"{call}(every={self.every}): {inner!r} decides every {inner.every} steps, and {call} would "
                f"hear of that a period late. Give both the same period, as in "
                f"{call}({type(inner).__name__}(..., {inside}), {same})."
            )
        if self.candidates is not None:
            found = numbers(call, self.reducer, self.candidates)
            if found != self.candidates:
                object.__setattr__(self, "candidates", found)
        for value in self.settings:  # what some settings need around them, all get
            form = tuned(tuned(self.reducer, value), base)
            if form != self.reducer:
                object.__setattr__(self, "reducer", form)

    @abstractmethod
    def decide(self, t: Telemetry) -> Sequence[float] | None:
        """A setting for each parameter of ``t``; None: all keep theirs. Runs on rank 0 alone.

        Raises:
            ValueError: there is none that serves; it ends the run on every rank.
        """

    @property
    def gathers(self) -> int:
        """Steps whose gradients are gathered."""
        return min(10, self.every) if self.window is None else self.window

    @property
    def lag(self) -> int:
        return min(LAG, (self.every - self.gathers) // 2)

    @property
    def settings(self) -> tuple[float, ...]:
        """All that a parameter may get, ascending."""
        own = grid(self.reducer) if self.candidates is None else (*self.candidates, setting("", self.reducer))
        inside = self.reducer.settings if isinstance(self.reducer, Controller) else ()
        return tuple(sorted({*own, *inside}))

    @property
    def core(self) -> Any:
        """What is inside, without controllers."""
        return self.reducer.core if isinstance(self.reducer, Controller) else self.reducer

    @cached_property
    def traits(self) -> Traits:
        return super().traits._replace(stateful=True, in_dtype=0)

    def contractive(self, scheme: str) -> Reducer:
        base, fitting = setting("", self.reducer), list[float]()
        form: Any = inside_feedback(self.reducer, scheme)
        for value in self.settings:
            try:
                one = inside_feedback(tuned(self.reducer, value), scheme)
            except ValueError:
                if self.candidates is not None:
                    raise
                continue
            fitting.append(value)
            if one != tuned(self.reducer, value):
                form = tuned(one, base)
        if len(fitting) == len(self.settings):
            return replace(self, reducer=form)
        return replace(self, reducer=form, **{"candidates": tuple(fitting)})

    def slots(self, segment: Segment, world: int) -> Mapping[str, Slot]:
        found = dict(roomy(self.core, self.settings).slots(segment, world))
        if isinstance(self.reducer, Controller):
            found.update(self.reducer._own(segment))
        return {**found, **self._own(segment)}

    def _own(self, segment: Segment) -> Mapping[str, Slot]:
        if self.exact(segment) or not segment.numel:
            return {}
        return {
            self._slot("gathered"): Slot(Merge.MEAN),
            self._slot("choice"): Slot(Merge.REPLICATED, 1, torch.float64),
            self._slot("telemetry"): Slot(
                Merge.REPLICATED, 2 + (len(self.settings) if self.measures else 0), torch.float64
            ),
        }

    def _slot(self, name: str) -> str:
        return f"{type(self).__name__.lower()}.{name}"

    def promises(self, segment: Segment) -> Promises:
        return weakest([tuned(self.core, value).promises(segment) for value in self.settings])

    # A step.

    def reduce(self, source: Source, target: Target, state: State, ctx: Context) -> Flow:
        self._gather(source, state, ctx)
        return self.current(state).reduce(source, target, state, ctx)

    def _gather(self, source: Source, state: State, ctx: Context) -> None:
        if isinstance(self.reducer, Controller):
            self.reducer._gather(source, state, ctx)
        x, add, decay, add_scale = source
        at = ctx.step % self.every - (self.every - self.gathers)
        if at < 0 or x.flat.is_meta:
            return
        if x.flat.dtype != torch.float32:
            raise TypeError(f"{self!r}: gradients are {x.flat.dtype} here, and it gathers float32. Convert them.")
        gathered, scale = state[self._slot("gathered")], ctx.unscale
        parts = [(x, decay * scale)] + ([] if add is None else [(add, add_scale * scale)])
        for bucket, factor in parts:
            discarded = slabs.zero_status(ctx, bucket.layout, "discarded")
            slabs.axpby(gathered, bucket, discarded, alpha=1.0, beta=factor)

    def current(self, state: State) -> Reducer:
        held = state[self._slot("choice")]
        chosen = () if held.flat.is_meta else kept(held.flat, "chosen", partial(_numbers, held.flat))
        if any(chosen):
            return _decided(self, held.layout, chosen)
        return self.reducer.current(state) if isinstance(self.reducer, Controller) else roomy(self.core, self.settings)

    # Between steps.

    def has_review(self, step: int) -> bool:
        return any(self._at(step, lag) for lag in (0, self.lag, 2 * self.lag))

    def _at(self, step: int, lag: int) -> bool:
        done = step + 1 - lag
        return done >= self.every and done % self.every == 0

    def between_steps(self, segments: Sequence[Segment], store: Store, ctx: Context) -> Between:
        every = measuring.layers(s for s in segments if s.numel and not self.exact(s))
        if not every:
            return
        if self._at(ctx.step, 0) and self.lag:
            work = partial(self._measured, every, store, ctx, written(store.device))
            store.under_way[self._key(every, "measured")] = Background(work)
        if self._at(ctx.step, self.lag):
            yield from self._exchange(every, store, ctx)
        if self._at(ctx.step, 2 * self.lag):
            yield from self._adopt(every, store, ctx)

    def _key(self, every: Sequence[Layer], work: str) -> object:
        """Of work under way: two parts of a Partition may have equal controllers."""
        return self, tuple(layer.name for layer in every), work

    def _measured(self, every: Sequence[Layer], store: Store, ctx: Context, event: Any = None) -> tuple[Table, Table]:
        """``event``: where the stream has come to that wrote the slots, for a thread that does not follow it."""
        mine, gathered = measuring.dealt(every, ctx.rank, ctx.world), self._slot("gathered")
        if event is not None:
            event.synchronize()
        with torch.cuda.stream(torch.cuda.Stream(store.device)) if event is not None else nullcontext():
            given = [(i, s, store.get(gathered, s).cpu()) for i in mine for s in every[i].pieces]
        return measuring.measure(self.core, given, len(every), self.settings if self.measures else (), ctx)

    def _exchange(self, every: Sequence[Layer], store: Store, ctx: Context) -> Between:
        work, failure = store.under_way.pop(self._key(every, "measured"), None), None
        width = 1 + (len(self.settings) if self.measures else 0)
        end = len(every) * width
        found = torch.zeros(end + width, dtype=torch.float64, device=store.device)
        try:
            with torch.no_grad():
                then = replace(ctx, step=ctx.step - self.lag)  # random rounding is that of the step of the measurement
                squares, spent = self._measured(every, store, then) if work is None else work.result()
            found[:end] = torch.from_numpy(squares).view(-1)
            found[end + 1 :] = torch.from_numpy(spent)
        except Exception as error:
            failure = error
            found[end] = 1.0
        yield AllReduce(found)
        if failure is not None:
            raise failure
        if found[end]:
            raise PeerError(f"{self!r}: a peer could not measure in step {ctx.step}; its own log has the error.")
        for layer, row in zip(every, found[:end].view(len(every), width).sqrt(), strict=True):
            for s in layer.pieces:
                held = store.get(self._slot("telemetry"), s)
                held[0] = held[1].clone()
                held[1:] = row
                store.get(self._slot("gathered"), s).zero_()
        store.under_way[self._key(every, "seconds")] = found[end + 1 :].tolist()
        if self.lag and ctx.rank == 0:
            store.under_way[self._key(every, "decided")] = Background(partial(self._decided, every, store))

    def _decided(self, every: Sequence[Layer], store: Store) -> Sequence[float] | None:
        return self.decide(self._telemetry(every, store))

    def telemetry(self, segments: Sequence[Segment], store: Store) -> Telemetry:
        """What was measured last; zeros before that. The same on every rank."""
        return self._telemetry(measuring.layers(s for s in segments if s.numel and not self.exact(s)), store)

    def _telemetry(self, every: Sequence[Layer], store: Store) -> Telemetry:
        pieces = [layer.pieces[0] for layer in every]
        width = 2 + (len(self.settings) if self.measures else 0)
        rows = np.array([store.get(self._slot("telemetry"), s).tolist() for s in pieces]).reshape(len(every), width)
        settings, base = self.settings, setting("", self.reducer)
        mine = self.choices(pieces, store)
        inner = self.reducer.choices(pieces, store) if isinstance(self.reducer, Controller) else {}
        return Telemetry(
            names=tuple(layer.name for layer in every),
            numel=np.array([layer.numel for layer in every]),
            settings=settings,
            norms=rows[:, 1],
            before=rows[:, 0],
            errors=rows[:, 2:] if self.measures else np.full((len(every), len(settings)), np.nan),
            sizes=measuring.sizes(self.core, every, settings),
            current=np.array([nearest(settings, mine.get(s.name, base)) for s in pieces]),
            reference=np.array([nearest(settings, inner.get(s.name, base)) for s in pieces]),
            first=not rows[:, 0].any(),
            seconds=np.array(store.under_way.get(self._key(every, "seconds"), ())),
        )

    def _adopt(self, every: Sequence[Layer], store: Store, ctx: Context) -> Between:
        said, failure = torch.zeros(1 + len(every), dtype=torch.float64, device=store.device), None
        work = store.under_way.pop(self._key(every, "decided"), None)
        if ctx.rank == 0:
            try:
                values = self._decided(every, store) if work is None else work.result()
                if values is None:
                    said[0] = _KEPT
                else:
                    said[1:] = torch.tensor(list(values), dtype=torch.float64)
            except Exception as error:
                failure = error
                said[0] = _FAILED
        yield Broadcast(said)
        if failure is not None:
            raise failure
        if said[0] == _KEPT:
            return
        if said[0] == _FAILED:
            raise PeerError(f"{self!r}: rank 0 found no setting after step {ctx.step}; its own log has the error.")
        chosen: list[float] = said[1:].tolist()
        for layer, value in zip(every, chosen, strict=True):
            if not self._possible(value):
                raise PeerError(
                    f"{self!r}: rank 0 sent {value} for {layer.name!r} after step {ctx.step}, which is no setting: its "
                    f"message was damaged, or it is configured differently."
                )
        for layer, value in zip(every, chosen, strict=True):
            for s in layer.pieces:
                store.get(self._slot("choice"), s).fill_(value)

    def _possible(self, value: float) -> bool:
        """Whether a parameter may get this setting: any density, but of bits and ranks those that there is room for."""
        if value in self.settings:
            return True
        try:
            return field(self.core) == "ratio" and tuned(self.core, value) is not None
        except ValueError:
            return False

    def choices(self, segments: Sequence[Segment], store: Store) -> dict[str, float]:
        base, found = setting("", self.reducer), dict[str, float]()
        inner = self.reducer.choices(segments, store) if isinstance(self.reducer, Controller) else {}
        for s in segments:
            if s.numel and not self.exact(s):
                found[s.name] = float(store.get(self._slot("choice"), s)) or inner.get(s.name, base)
        return found


def _numbers(values: torch.Tensor) -> tuple[float, ...]:
    return tuple(values.tolist())


def written(device: torch.device) -> Any:
    """An event behind what the current stream has to write; None where the host writes itself."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record()
    return event


@lru_cache(maxsize=4096)
def _decided(controller: Controller, held: Layout, chosen: tuple[float, ...]) -> Any:
    """What is inside, with these settings; zero: none is chosen."""
    base = setting("", controller.core)
    values = {s.name: v for s, v in zip(held.segments, chosen, strict=True) if v not in (0.0, base)}
    return assigned(roomy(controller.core, controller.settings), tuple(sorted(values.items())))
