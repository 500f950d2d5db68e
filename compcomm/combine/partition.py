"""Partition: different reducers for different parameters, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache
from typing import Any, NoReturn, cast

import torch

from ..core.compressor import Compressor
from ..core.context import Context
from ..core.layout import Bucket, Layout, Segment
from ..core.reducer import Flow, Reduced, Reducer, Update
from ..core.source import Source, Target
from ..core.state import State
from ..core.traits import Traits
from .wrapper import Wrapper


@dataclass(frozen=True, repr=False)
class Partition(Wrapper):
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

    def contractive(self, scheme: str) -> Reducer:
        return Reducer.contractive(self, scheme)

    def _feedback_hint(self, scheme: str) -> str:
        return f"Put the feedback around each part: Partition({{pattern: {scheme}(...)}})."

    @cached_property
    def traits(self) -> Traits:
        return super().traits._replace(named=True)

    def part(self, segment: Segment) -> Reducer | Compressor:
        """What is in charge of a segment.

        Raises:
            ValueError: no pattern matches its name.
        """
        return self.parts[self._pattern(segment.name)]

    def _pattern(self, name: str) -> str:
        for pattern in self.parts:
            if fnmatchcase(name, pattern):
                return pattern
        raise ValueError(f"{self!r}: no pattern matches {name!r}. Add a last pattern, for example {{'*': Exact()}}.")

    def split(self, names: Sequence[str]) -> Iterator[tuple[Reducer | Compressor, set[str]]]:
        """Each part, with those of ``names`` that are in its charge."""
        found = {name: self._pattern(name) for name in names}
        for pattern, part in self.parts.items():
            yield part, {name for name, own in found.items() if own == pattern}

    def check(self, layout: Layout) -> None:
        found = {p: [s for s in layout.segments if self._pattern(s.name) == p] for p in self.parts}
        for pattern, part in self.parts.items():
            if layout.segments and not found[pattern]:
                names = ", ".join(s.name for s in layout.segments[:3])
                raise ValueError(
                    f"{self!r}: no parameter is left for pattern {pattern!r}: it matches none, or an earlier one "
                    f"took them all (the first match wins). The model has {names}, ..."
                )
            if isinstance(part, Reducer):
                part.check(Layout(found[pattern], layout.numel))

    def reduce(self, source: Source, target: Target, state: State, ctx: Context) -> Flow:
        results: list[Reduced] = []
        outer = ctx.tag
        x, add, out = source.x, source.add, target.out
        whole = x.layout if add is None else add.layout
        for pattern, layout in _selections(self, whole):
            part = self.ready(self.parts[pattern])
            # Payloads live until the Commit is answered, so parts must not have one another's buffers of this bucket.
            ctx.tag = f"{outer}{pattern}/"
            own = Source(Bucket(x.flat, layout)) if add is None else Source(x, Bucket(add.flat, layout))
            results.append(
                (
                    yield from part.reduce(
                        own._replace(decay=source.decay, add_scale=source.add_scale),
                        # A row of a sharded buffer is laid out by itself: each part finds there what it has.
                        target if out.layout != whole else target._replace(out=Bucket(out.flat, layout)),
                        state.on(layout),
                        ctx,
                    )
                )
            )
        ctx.tag = outer

        def on_rollback() -> None:
            for result in results:
                result.on_rollback()

        def on_commit() -> None:
            for result in results:
                result.on_commit()

        return Reduced(
            _Several([r.sent for r in results if r.sent is not None]), on_rollback=on_rollback, on_commit=on_commit
        )


@lru_cache(maxsize=4096)
def _selections(partition: Partition, layout: Layout) -> tuple[tuple[str, Layout], ...]:
    groups: dict[str, list[Segment]] = {}
    for s in layout.segments:
        groups.setdefault(partition._pattern(s.name), []).append(s)  # pyright: ignore[reportPrivateUsage]
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
        flat = torch.stack([part.dense(layout).flat for part in self.parts]).sum(0)  # on the parts' device
        return Bucket(flat, layout)


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
