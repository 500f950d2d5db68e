"""Schedules: a method's density, bits or rank as a function of the step.

A schedule goes around a compressor or reducer, outside a feedback scheme or inside one. It has no state: the step is
counted by the host and kept in its checkpoint, so a resumed run goes on where it was. Settings change in stages, since
every new one makes new tables and buffers of another size: for ResNet-50 on one core 3 to 11 ms, a tenth of a step or
less (benchmarks/schedules.py); within a stage nothing is made anew. ``cost`` gives what comes after the last stage.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import isfinite
from typing import Any

from ..core.compressor import Compressor
from ..core.layout import Segment
from ..core.reducer import (
    Context,
    Flow,
    Reducer,
    settle,
)
from ..core.source import Source, Target
from ..core.state import Slot, State
from ..routes.powersgd import PowerSGD
from .candidates import roomy
from .setting import (
    field,
    owner,
    refuse_inner,
    setting,
    tuned,
    with_owner,
)
from .wrapper import Around


@dataclass(frozen=True, repr=False)
class Schedule(Around, ABC, abstract=True):
    """Base of the schedules. To write one, give ``settings`` and ``at``.

    The coarsest setting decides what serves for all: whether feedback needs a ``Contractive`` form, and EControl's eta.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        call = type(self).__name__
        setting(call, self.reducer)
        refuse_inner(call, self.reducer)
        for value in self.settings:
            try:
                tuned(self.reducer, value)
            except ValueError as error:
                raise ValueError(f"{call}: {value!r}, which comes in the schedule, does not serve: {error}") from None

    @property
    @abstractmethod
    def settings(self) -> tuple[float, ...]:
        """All that will come."""

    @abstractmethod
    def at(self, step: int) -> float:
        """The setting of a step."""

    def contractive(self, scheme: str) -> Reducer:
        return self._formed(self._coarsest.contractive(scheme))

    def settle(self, world: int) -> Reducer:
        return self._formed(settle(self._coarsest, world))

    @property
    def _coarsest(self) -> Any:
        return tuned(self.reducer, min(self.settings))

    def _formed(self, coarsest: Any) -> Reducer:
        return replace(self, reducer=tuned(coarsest, setting("", self.reducer)))

    def slots(self, segment: Segment, world: int) -> Mapping[str, Slot]:
        return _staged(self, max(self.settings)).slots(segment, world)

    def delta(self, segment: Segment) -> float | None:
        found = [tuned(self.inner, value).delta(segment) for value in self.settings]
        return None if None in found else min(d for d in found if d is not None)

    def scheduled(self, segments: Sequence[Segment], step: int) -> dict[str, float]:
        return {s.name: self.at(step) for s in segments if s.numel and not self.exact(s)}

    def now_at(self, step: int) -> Reducer:
        """What is inside, as it runs in a step."""
        return _staged(self, self.at(step))

    def reduce(self, source: Source, target: Target, state: State, ctx: Context) -> Flow:
        return (yield from self.now_at(ctx.step).reduce(source, target, state, ctx))


@dataclass(frozen=True, repr=False)
class Ramp(Schedule, ABC, abstract=True):
    """From ``start`` to the reducer's own setting in stages, then the reducer as it is."""

    reducer: Reducer | Compressor
    start: float
    steps: int
    stages: int | None = None
    epoch: int = 1

    def __post_init__(self) -> None:
        call = type(self).__name__
        _number(f"{call}(start={self.start!r})", self.start)
        _count(call, "steps", self.steps)
        _count(call, "epoch", self.epoch)
        if self.stages is not None:
            _count(call, "stages", self.stages)
            if self.stages > self.steps:
                raise ValueError(f"{call}(steps={self.steps}, stages={self.stages}): a stage is a step or more.")
        super().__post_init__()

    @abstractmethod
    def between(self, start: float, own: float, share: float) -> float:
        """The setting when ``share`` of the way is gone."""

    @property
    def settings(self) -> tuple[float, ...]:
        return _way(self)

    def at(self, step: int) -> float:
        way = _way(self)
        stages = len(way) - 1
        return way[min(stages, step // self.epoch * stages // self.steps)]


@dataclass(frozen=True, repr=False)
class Geometric(Ramp):
    """From ``start`` to the reducer's own setting in ``stages`` stages whose settings have equal ratios:
    start^(1 - i/n) own^(i/n) in stage i of n, then the reducer as it is. Deep gradient compression warms up so.

    ``Geometric(TopK(ratio=0.001), start=0.25, steps=4, epoch=500)`` has 25 %, 6.3 %, 1.6 %, 0.4 % in its four epochs.
    Bits and ranks are rounded. State and promises are those of what is inside.

    Args:
        start: the first setting.
        steps: how long until the reducer's own setting, in epochs of ``epoch`` steps.
        stages: None: as many as ``steps``, at most 10.

    Source: Lin, Han, Mao, Wang, Dally 2018 (arXiv:1712.01887), section 3.3: 75 %, 93.75 %, 98.4375 %, 99.6 % sparsity,
    then 99.9 %, an epoch each.
    """

    def between(self, start: float, own: float, share: float) -> float:
        return start ** (1 - share) * own**share


@dataclass(frozen=True, repr=False)
class Linear(Ramp):
    """From ``start`` to the reducer's own setting in ``stages`` equal parts: start + (own - start) i/n in stage i of n,
    then the reducer as it is.

    Bits and ranks are rounded. Arguments as in ``Geometric``; state and promises are those of what is inside.
    """

    def between(self, start: float, own: float, share: float) -> float:
        return start + (own - start) * share


@dataclass(frozen=True, repr=False)
class Steps(Schedule):
    """Piecewise constant: ``Steps(TopK(ratio=0.01), {0: 0.25, 5: 0.05, 10: 0.01}, epoch=500)`` sends 25 % in the first
    five epochs, 5 % in the next five, and 1 % from then on. Before the first boundary: the reducer's own setting.

    State and promises are those of what is inside.

    Args:
        boundaries: {from this epoch on: setting}, ascending; or pairs.
        epoch: steps per epoch; 1: boundaries are steps.
    """

    reducer: Reducer | Compressor
    boundaries: Any
    epoch: int = 1

    def __post_init__(self) -> None:
        given = tuple(self.boundaries.items()) if isinstance(self.boundaries, Mapping) else self.boundaries
        call = f"Steps(boundaries={self.boundaries!r})"
        listed = isinstance(given, list | tuple) and all(isinstance(p, list | tuple) and len(p) == 2 for p in given)
        if not given or not listed:
            raise ValueError(f"{call}: give {{step: setting}}, such as {{0: 0.25, 1000: 0.01}}.")
        pairs = tuple((start, value) for start, value in given)
        starts = [start for start, _ in pairs]
        if any(isinstance(s, bool) or not isinstance(s, int) or s < 0 for s in starts) or starts != sorted({*starts}):
            raise ValueError(f"{call}: boundaries are steps (or epochs), integers from 0 on, ascending and each once.")
        for _, value in pairs:
            _number(call, value)
        _count("Steps", "epoch", self.epoch)
        object.__setattr__(self, "boundaries", pairs)
        super().__post_init__()

    @property
    def settings(self) -> tuple[float, ...]:
        return tuple(dict.fromkeys((setting("", self.reducer), *(value for _, value in self.boundaries))))

    def at(self, step: int) -> float:
        passed = [value for start, value in self.boundaries if step // self.epoch >= start]
        return passed[-1] if passed else setting("", self.reducer)


def _count(call: str, name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{call}({name}={value!r}): an integer, 1 or more.")


def _number(call: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not (isfinite(value) and value > 0):
        raise ValueError(f"{call}: {value!r} is no density, number of bits or rank. Give a number above 0.")


@lru_cache(maxsize=256)
def _way(ramp: Ramp) -> tuple[float, ...]:
    """The setting of each stage, and then the reducer's own."""
    own = setting("", ramp.reducer)
    n = min(10, ramp.steps) if ramp.stages is None else ramp.stages
    way = (ramp.between(ramp.start, own, i / n) for i in range(n))
    return (*(value if field(ramp.reducer) == "ratio" else round(value) for value in way), own)


@lru_cache(maxsize=4096)
def _staged(schedule: Schedule, value: float) -> Any:
    part = roomy(schedule.inner, schedule.settings)
    mine = owner(part)
    if isinstance(mine, PowerSGD):  # what travels exact does not change with the rank
        return with_owner(part, replace(mine, ranks=(*mine.ranks, ("*", int(value)))))
    return tuned(part, value)
