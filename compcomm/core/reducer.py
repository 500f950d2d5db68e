"""The contract of a reducer: one way to average a bucket over the workers.

A reducer is a frozen description; ``reduce`` is a generator that yields collectives and is resumed when they are done.
It does not know who runs it: a process group, a simulator of W ranks in one process, or a dry run that counts bytes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .collectives import Collective, Commit
from .compressor import Compressor, Payload
from .context import Context
from .deferred import DeferredBool
from .description import Described
from .former import OF_REDUCERS, asked, without_source
from .layout import Bucket, Layout, Segment
from .source import Source, Target
from .state import Slot, State
from .traits import Promises, Traits, combined


class Update(Protocol):
    """What this rank sent, decoded lazily."""

    def add_(self, into: Bucket, scale: float = 1.0) -> None:
        """into += scale * what was sent, for the segments that ``into`` has."""
        ...

    def zero_(self, into: Bucket) -> None:
        """Zeroes in ``into`` the elements that were sent."""
        ...

    def dense(self, layout: Layout) -> Bucket:
        """As a new bucket."""
        ...


class Sent:
    """An ``Update`` of one payload: segments in ``skip`` were given back."""

    def __init__(self, payload: Payload, skip: Tensor | None = None) -> None:
        self.payload, self.skip = payload, skip

    def add_(self, into: Bucket, scale: float = 1.0) -> None:
        """into += scale * what was sent: O(k) for sparse payloads."""
        self.payload.decode_add_(into, scale, skip=self.skip)

    def zero_(self, into: Bucket) -> None:
        """Zeroes in ``into`` the elements that were sent."""
        self.payload.zero_(into, skip=self.skip)

    def dense(self, layout: Layout) -> Bucket:
        """As a new bucket."""
        bucket = Bucket(torch.zeros(layout.numel, dtype=torch.float32, device=self.payload.wire.device), layout)
        self.add_(bucket)
        return bucket


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Reduced:
    """What ``reduce`` returns.

    ``sent``: this rank's own payload, None where everything went (``Exact``). ``error``: what this rank failed to
    send (aliases x), None when nothing was lost. ``on_rollback``: gives back what this step took from memory, and
    takes what a route added to an ``out`` that accumulates, for a step that the optimizer skips. ``on_commit``: what
    is left to do where the step counts. ``bad``: a rank met a non-finite value in this bucket. ``unused``: uint8 per
    segment, 1 where every rank's gradient is zero; None where there is surely no such segment.
    """

    sent: Update | None = None
    error: Bucket | None = None
    on_rollback: Callable[[], None] = _nothing
    on_commit: Callable[[], None] = _nothing
    bad: DeferredBool = False
    unused: Tensor | None = None

    def after(self, first: Callable[[], None]) -> Reduced:
        """The same, where a rollback begins with ``first``."""

        def both() -> None:
            first()
            self.on_rollback()

        return replace(self, on_rollback=both)


Flow = Generator[Collective, bool, Reduced]


class Resolving(NamedTuple):
    """For whom a description is made able to run: ``world`` ranks, inside a feedback scheme whose owners use ``scheme``
    (None: inside none); ``rows``: of which each wants its own row of the mean alone. ``choose`` is
    ``routes.choose.settle``."""

    world: int
    scheme: type[Reducer] | None
    rows: bool
    choose: Callable[..., Reducer]

    def part(self, part: Reducer | Compressor, scheme: type[Reducer] | None = None) -> Reducer:
        """What is inside, resolved; ``scheme``: where a feedback scheme asks."""
        return self.choose(part, self.world, scheme or self.scheme, rows=self.rows)


@dataclass(frozen=True, repr=False)
class Reducer(Described, ABC, abstract=True):
    """Base of all reducers. To write one, give ``reduce``; ``slots``, ``exact``, ``promises``, ``traits`` where the
    defaults do not fit; ``contractive``, ``resolve`` and ``check`` where it has something inside."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        without_source(cls)

    def __getattr__(self, name: str) -> Any:
        return asked(self, name, OF_REDUCERS, "traits")

    def slots(self, segment: Segment, world: int) -> Mapping[str, Slot]:
        """The state that a segment needs, by slot name."""
        return {}

    def exact(self, segment: Segment) -> bool:
        """Whether this segment travels exact: it has no residual."""
        return False

    def promises(self, segment: Segment) -> Promises:
        """What holds of this segment."""
        return Promises()

    @cached_property
    def traits(self) -> Traits:
        """What it can do, once it is settled."""
        return combined(traits_of(part) for part in parts(self))

    def contractive(self, scheme: str) -> Reducer:
        """This reducer as the feedback scheme of that name needs it; an error where its compressor is no
        contraction."""
        name = type(self).__name__
        raise ValueError(f"{scheme}({self!r}): {name} gives no error to feed back. {self._feedback_hint(scheme)}")

    def _feedback_hint(self, scheme: str) -> str:
        """How the feedback scheme of that name goes together with this reducer."""
        return "Use it as it is."

    def resolve(self, to: Resolving) -> Reducer:
        """This reducer with every route chosen."""
        return self

    def check(self, layout: Layout) -> None:
        """Raises ValueError where this reducer does not fit a model's parameters; a host calls it at attach."""
        for part in parts(self):
            if isinstance(part, Reducer):
                part.check(layout)

    @abstractmethod
    def reduce(self, source: Source, target: Target, state: State, ctx: Context) -> Flow:
        """target.out = (out if accumulate) + scale * mean over the ranks of y, y = decay*x + add_scale*add.

        On return ``source.x`` holds y minus what was sent. Where a rank met a non-finite value, ``out`` is NaN; where
        it accumulates, the finite part is added, and ``Reduced.on_rollback`` takes it back.
        """
        raise NotImplementedError


def parts(described: object) -> tuple[Reducer | Compressor, ...]:
    """The reducers and compressors directly inside, in the order of the fields."""
    found: list[Reducer | Compressor] = []
    for f in fields(described):  # type: ignore[arg-type]
        value = getattr(described, f.name)
        inside = value.values() if isinstance(value, Mapping) else (value,)
        found += [part for part in inside if isinstance(part, Reducer | Compressor)]
    return tuple(found)


def with_parts(described: Any, change: Callable[[Any], Any]) -> Any:
    """The same around ``change(part)`` for each of ``parts``; itself, where none changes."""
    changed: dict[str, Any] = {}
    for f in fields(described):
        value = getattr(described, f.name)
        if isinstance(value, Reducer | Compressor):
            new = change(value)
            if new is not value:
                changed[f.name] = new
        elif isinstance(value, Mapping) and any(isinstance(p, Reducer | Compressor) for p in value.values()):
            every = {key: change(part) for key, part in value.items()}
            if any(every[key] is not part for key, part in value.items()):
                changed[f.name] = every
    return replace(described, **changed) if changed else described


def traits_of(part: Reducer | Compressor) -> Traits:
    """Of a reducer; of a compressor that has no route yet, as far as they can be told."""
    return part.traits if isinstance(part, Reducer) else Traits(variable=part.variable)


def flow(
    reducer: Reducer, given: Source | Bucket, state: State, ctx: Context, wanted: Target | Bucket | None = None
) -> Flow:
    """The whole life of a bucket in a step: reduce, then Commit, then ``on_commit`` or, in a bad step, ``on_rollback``.

    ``given`` and ``wanted`` as ``reduce`` has them, or as plain buckets; None: the mean goes where the gradient was."""
    source = given if isinstance(given, Source) else Source(given)
    target = wanted if isinstance(wanted, Target) else Target(wanted or source.x)
    if ctx.within is None:
        result = yield from reducer.reduce(source, target, state, ctx)
    else:
        result = yield from ctx.within.reduce(reducer, source, target, state, ctx)
    if not reducer.traits.stateful:  # nothing to be undone, so the gradient's memory is not held until the step ends
        result = replace(result, error=None)
    del given, wanted, source, target
    if (yield Commit()):
        result.on_rollback()
    else:
        result.on_commit()
    return result
