"""Questions to a whole description, answered by going through what is inside it.

Most of a composition only passes a question on. Those that have an answer of their own say so by their class:
``Decides`` (controllers), ``Follows`` (schedules), ``ChecksOptimizer``; ``Splits`` gives each part parameters of
its own.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Container, Generator, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

from .collectives import Collective
from .context import Context
from .layout import Layout, Segment
from .reducer import Reducer, parts, with_parts
from .state import State, Store

Between = Generator[Collective, bool, None]
"""What is done between two steps: yields collectives as ``reduce`` does, and no Commit."""


class Group(NamedTuple):
    """The parameter group that a parameter is in: its number in an optimizer of that name, and its options."""

    optimizer: str
    number: int
    options: Mapping[str, Any]


@runtime_checkable
class Splits(Protocol):
    """A reducer whose parts have parameters of their own."""

    def split(self, names: Sequence[str]) -> Iterator[tuple[Any, set[str]]]:
        """(part, the names in its charge)."""
        ...


@runtime_checkable
class ChecksOptimizer(Protocol):
    """A reducer that does not go together with every optimizer."""

    def check_optimizer(self, groups: Mapping[str, Group | None] | None) -> None:
        """Raises ValueError where it does not. ``groups``: by parameter, the group that it is in (None: in no given
        optimizer); None: no optimizer was given."""
        ...


@runtime_checkable
class Follows(Protocol):
    """A reducer whose settings are a function of the step."""

    def scheduled(self, segments: Sequence[Segment], step: int) -> dict[str, float]:
        """What it gives in ``step``, by parameter."""
        ...


class Decides(Reducer, abstract=True):
    """A reducer that measures, and decides between two steps."""

    @abstractmethod
    def has_review(self, step: int) -> bool:
        """Whether there is something to do after ``step``: a function of the configuration and the step alone."""

    @abstractmethod
    def between_steps(self, segments: Sequence[Segment], store: Store, ctx: Context) -> Between:
        """After step ``ctx.step``, while the host goes on: what it measures, exchanges and decides.

        ``segments``: those in its charge, in the same order on every rank. It changes REPLICATED slots, equally on all
        ranks, and nothing that is still to be applied.
        """

    @abstractmethod
    def current(self, state: State) -> Reducer:
        """This reducer as it runs with the decisions that ``state`` holds: it yields the same, and asks no state."""

    @abstractmethod
    def choices(self, segments: Sequence[Segment], store: Store) -> dict[str, float]:
        """What it has chosen, by parameter: the density, the bits or the rank of each that it controls."""


def branches(reducer: Reducer, segments: Sequence[Segment]) -> Iterator[tuple[Reducer, Sequence[Segment]]]:
    """The reducers directly inside, each with the segments in its charge."""
    if isinstance(reducer, Splits):
        for part, names in reducer.split([s.name for s in segments]):
            if isinstance(part, Reducer):
                yield part, [s for s in segments if s.name in names]
        return
    for part in parts(reducer):
        if isinstance(part, Reducer):
            yield part, segments


def check_optimizer(reducer: Reducer, groups: Mapping[str, Group | None] | None) -> None:
    """Raises ValueError where something in ``reducer`` does not go together with the optimizer."""
    if isinstance(reducer, ChecksOptimizer):
        reducer.check_optimizer(groups)
    if isinstance(reducer, Splits) and groups is not None:
        for part, names in reducer.split(list(groups)):
            if isinstance(part, Reducer):
                check_optimizer(part, {name: group for name, group in groups.items() if name in names})
        return
    for part in parts(reducer):
        if isinstance(part, Reducer):
            check_optimizer(part, groups)


def controllers(reducer: Reducer, segments: Sequence[Segment] = ()) -> Iterator[tuple[Decides, Sequence[Segment]]]:
    """Those within, the outermost of each branch, with the segments in their charge."""
    if isinstance(reducer, Decides):
        yield reducer, segments
        return
    for part, own in branches(reducer, segments):
        yield from controllers(part, own)


def has_review(reducer: Reducer, step: int) -> bool:
    """Whether there is something to do after ``step``."""
    own = isinstance(reducer, Decides) and reducer.has_review(step)
    return own or any(has_review(part, step) for part in parts(reducer) if isinstance(part, Reducer))


def between_steps(reducer: Reducer, segments: Sequence[Segment], store: Store, ctx: Context) -> Between:
    """All that is due after step ``ctx.step``, innermost first."""
    for part, own in branches(reducer, segments):
        if has_review(part, ctx.step):
            yield from between_steps(part, own, store, ctx)
    if isinstance(reducer, Decides):
        yield from reducer.between_steps(segments, store, ctx)


def current(reducer: Reducer, state: State) -> Reducer:
    """``reducer`` as it runs with the decisions that ``state`` holds."""
    if isinstance(reducer, Decides):
        return reducer.current(state)
    own = {id(part): state for part in parts(reducer)}
    if isinstance(reducer, Splits):
        names: dict[int, set[str]] = {}
        for part, mine in reducer.split([s.name for s in state.layout.segments]):
            names.setdefault(id(part), set()).update(mine)
        own = {part: state.on(_those(state.layout, mine)) for part, mine in names.items()}
    return with_parts(reducer, lambda part: current(part, own[id(part)]) if isinstance(part, Reducer) else part)


def _those(layout: Layout, names: Container[str]) -> Layout:
    return layout.select(lambda s: s.name in names)


def choices(reducer: Reducer, segments: Sequence[Segment], store: Store) -> dict[str, float]:
    """What controllers have chosen, by parameter."""
    found: dict[str, float] = {}
    for controller, own in controllers(reducer, segments):
        found |= controller.choices(own, store)
    return found


def scheduled(reducer: Reducer, segments: Sequence[Segment], step: int) -> dict[str, float]:
    """What schedules give in ``step``, by parameter: a function of the configuration and the step alone."""
    if isinstance(reducer, Follows):
        return reducer.scheduled(segments, step)
    found: dict[str, float] = {}
    for part, own in branches(reducer, segments):
        found |= scheduled(part, own, step)
    return found


def world_independent(reducer: Reducer) -> Reducer:
    """This description without what belongs to one number of ranks (fields with ``metadata={"per_world": True}``): what
    merged states must agree on."""
    inside = with_parts(reducer, lambda part: world_independent(part) if isinstance(part, Reducer) else part)
    reset = {f.name: f.default for f in fields(inside) if f.metadata.get("per_world")}
    return replace(inside, **reset) if reset else inside
