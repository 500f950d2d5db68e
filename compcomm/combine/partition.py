"""Partition: different reducers for different parameters, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, NoReturn, cast

import torch
from torch import Tensor

from ..core.compressor import Compressor
from ..core.layout import Bucket, Layout, Segment
from ..core.reducer import (
    Context,
    Flow,
    Group,
    Reduced,
    Reducer,
    Review,
    Update,
    settle,
)
from ..core.source import Source, Target
from ..core.state import Slot, State, Store


@dataclass(frozen=True, repr=False)
class Partition(Reducer):
    """``Partition({"embed*": RandK(ratio=0.1), "*": ErrorFeedback(TopK(0.01))})``: the first match wins.

    Patterns are shell-style (``fnmatch``) on the parameter's full name. A name that none matches is an error at attach:
    end with "*". Each part sends its own collectives, one after the other, in the order of the patterns.

    State is the parts'. No second copy of anything: parts work on selections of the same buffer.
    """

    parts: Mapping[str, Reducer | Compressor]

    def __post_init__(self) -> None:
        if not isinstance(self.parts, Mapping) or not self.parts:
            raise ValueError(f"Partition({self.parts!r}): give a dictionary of {{pattern: reducer}}.")
        for pattern, part in self.parts.items():
            if not isinstance(pattern, str) or not isinstance(part, Reducer | Compressor):
                raise TypeError(f"Partition: {pattern!r}: {part!r} is not a name pattern with a reducer.")
        object.__setattr__(self, "parts", _Frozen(self.parts))

    def feedback_cure(self, scheme: str) -> str:
        return f"Put the feedback around each part: Partition({{pattern: {scheme}(...)}})."

    def settle(self, world: int) -> Reducer:
        return Partition({p: settle(r, world) for p, r in self.parts.items()})

    def part(self, segment: Segment) -> Reducer:
        """The reducer in charge of a segment.

        Raises:
            ValueError: no pattern matches its name.
        """
        part = self.parts[self._pattern(segment)]
        if not isinstance(part, Reducer):
            raise TypeError(f"{self!r}: no route yet. Call settle(reducer, world) first.")
        return part

    def _pattern(self, segment: Segment) -> str:
        return self._named(segment.name)

    def _named(self, name: str) -> str:
        for pattern in self.parts:
            if fnmatchcase(name, pattern):
                return pattern
        raise ValueError(f"{self!r}: no pattern matches {name!r}. Add a last pattern, for example {{'*': Exact()}}.")

    def check(self, layout: Layout) -> None:
        found = {p: [s for s in layout.segments if self._pattern(s) == p] for p in self.parts}
        for pattern, part in self.parts.items():
            if layout.segments and not found[pattern]:
                names = ", ".join(s.name for s in layout.segments[:3])
                raise ValueError(
                    f"{self!r}: no parameter is left for pattern {pattern!r}: it matches none, or an earlier one "
                    f"took them all (the first match wins). The model has {names}, ..."
                )
            if isinstance(part, Reducer):
                part.check(Layout(found[pattern], layout.numel))

    def check_optimizer(self, groups: Mapping[str, Group | None] | None) -> None:
        for pattern, part in self.parts.items():
            if isinstance(part, Reducer):
                own = groups and {n: g for n, g in groups.items() if self._named(n) == pattern}
                part.check_optimizer(own)

    @property
    def stateful(self) -> bool:
        return any(p.stateful for p in self.parts.values() if isinstance(p, Reducer))

    @property
    def accumulates(self) -> bool:
        return all(p.accumulates for p in self.parts.values() if isinstance(p, Reducer))

    @property
    def needs_names(self) -> bool:
        return True

    @property
    def variable(self) -> bool:
        return any(p.variable for p in self.parts.values())

    def slots(self, segment: Segment, world: int) -> Mapping[str, Slot]:
        return self.part(segment).slots(segment, world)

    def exact(self, segment: Segment) -> bool:
        return self.parts[self._pattern(segment)].exact(segment)

    def due(self, step: int) -> bool:
        return any(p.due(step) for p in self.parts.values() if isinstance(p, Reducer))

    def scheduled(self, segments: Sequence[Segment], step: int) -> dict[str, float]:
        found: dict[str, float] = {}
        for pattern, part in self.parts.items():
            if isinstance(part, Reducer):
                found |= part.scheduled([s for s in segments if self._pattern(s) == pattern], step)
        return found

    def review(self, segments: Sequence[Segment], store: Store, ctx: Context) -> Review:
        for pattern, part in self.parts.items():
            if isinstance(part, Reducer) and part.due(ctx.step):
                yield from part.review([s for s in segments if self._pattern(s) == pattern], store, ctx)

    def now(self, state: State) -> Reducer:
        parts = {p: r.now(state) if isinstance(r, Reducer) else r for p, r in self.parts.items()}
        return self if all(new is self.parts[p] for p, new in parts.items()) else Partition(parts)

    def controllers(self, segments: Sequence[Segment]) -> Iterator[tuple[Any, Sequence[Segment]]]:
        for pattern, part in self.parts.items():
            if isinstance(part, Reducer):
                yield from part.controllers([s for s in segments if self._pattern(s) == pattern])

    def in_order(self, slot: str, segment: Segment, joined: Tensor) -> Tensor:
        return self.part(segment).in_order(slot, segment, joined)

    def weight(self, slot: str, segment: Segment, rank: int, world: int) -> float:
        return self.part(segment).weight(slot, segment, rank, world)

    def for_any_world(self) -> Reducer:
        return Partition({p: r.for_any_world() if isinstance(r, Reducer) else r for p, r in self.parts.items()})

    def conserves(self, segment: Segment) -> bool:
        return self.part(segment).conserves(segment)

    def delta(self, segment: Segment) -> float | None:
        return self.part(segment).delta(segment)

    def reduce(self, source: Source, target: Target, state: State, ctx: Context) -> Flow:
        results: list[Reduced] = []
        outer = ctx.tag
        x, add, out = source.x, source.add, target.out
        whole = x.layout if add is None else add.layout
        for pattern, layout in _selections(self, whole):
            part = self.parts[pattern]
            assert isinstance(part, Reducer)
            ctx.tag = f"{outer}{pattern}/"
            own = Source(Bucket(x.flat, layout)) if add is None else Source(x, Bucket(add.flat, layout))
            results.append(
                (
                    yield from part.reduce(
                        own._replace(decay=source.decay, add_scale=source.add_scale),
                        target if out.layout != whole else target._replace(out=Bucket(out.flat, layout)),
                        state.on(layout),
                        ctx,
                    )
                )
            )
        ctx.tag = outer

        def undo() -> None:
            for result in results:
                result.undo()

        def keep() -> None:
            for result in results:
                result.keep()

        return Reduced(_Several([r.sent for r in results if r.sent is not None]), undo=undo, keep=keep)


@lru_cache(maxsize=4096)
def _selections(partition: Partition, layout: Layout) -> tuple[tuple[str, Layout], ...]:
    groups: dict[str, list[Segment]] = {}
    for s in layout.segments:
        groups.setdefault(partition._pattern(s), []).append(s)  # pyright: ignore[reportPrivateUsage]
    return tuple((p, Layout(groups[p], layout.numel)) for p in partition.parts if p in groups)


class _Several:
    """The updates of all parts, as one."""

    def __init__(self, parts: Sequence[Update]) -> None:
        self.parts = parts

    def add_(self, into: Bucket, scale: float = 1.0) -> None:
        for part in self.parts:
            part.add_(into, scale)

    def zero_(self, into: Bucket) -> None:
        for part in self.parts:
            part.zero_(into)

    def dense(self, layout: Layout) -> Bucket:
        whole = Bucket(torch.zeros(layout.numel, dtype=torch.float32), layout)
        self.add_(whole)
        return whole


class _Frozen(dict[str, "Reducer | Compressor"]):
    """A dictionary that never changes, and whose order counts: the first pattern that matches decides."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(self.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and list(self.items()) == list(cast("Mapping[Any, Any]", other).items())

    def __reduce__(self) -> tuple[Any, ...]:
        return _Frozen, (dict(self),)

    def _fixed(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("Partition: its parts are fixed. Make a new Partition({...}).")

    __setitem__ = __delitem__ = __ior__ = update = pop = popitem = clear = setdefault = _fixed  # type: ignore[assignment]
