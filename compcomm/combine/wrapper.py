"""What wraps reducers and keeps no residual of its own: it decides which of them, or which form of one, runs."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..compressors.contractive import contractive
from ..core.compressor import Compressor
from ..core.context import Context
from ..core.layout import Segment
from ..core.reducer import Flow, Reducer, Resolving, with_parts
from ..core.source import Source, Target
from ..core.state import Slot, State
from ..core.traits import Promises


@dataclass(frozen=True, repr=False)
class Wrapper(Reducer, ABC, abstract=True):
    """Base of such wrappers: with the field ``reducer`` alone, it does what is inside. Override what differs."""

    if TYPE_CHECKING:
        reducer: Reducer | Compressor

    def __post_init__(self) -> None:
        if not isinstance(self.reducer, Reducer | Compressor):
            name = type(self).__name__
            raise TypeError(f"{name}({self.reducer!r}): give a compressor or a reducer, such as TopK(ratio=0.01).")

    def part(self, segment: Segment) -> Reducer | Compressor:
        """What serves a segment."""
        return self.reducer

    def ready(self, part: Reducer | Compressor) -> Reducer:
        """A part whose route is chosen."""
        if not isinstance(part, Reducer):
            raise TypeError(f"{self!r}: no route yet. Call settle(reducer, world) first.")
        return part

    @property
    def inner(self) -> Reducer:
        """The reducer inside, once its route is chosen."""
        return self.ready(self.reducer)

    def contractive(self, scheme: str) -> Reducer:
        return with_parts(self, lambda part: inside_feedback(part, scheme))

    def resolve(self, to: Resolving) -> Reducer:
        return with_parts(self, to.part)

    def slots(self, segment: Segment, world: int) -> Mapping[str, Slot]:
        return self.ready(self.part(segment)).slots(segment, world)

    def exact(self, segment: Segment) -> bool:
        return self.part(segment).exact(segment)

    def promises(self, segment: Segment) -> Promises:
        return self.ready(self.part(segment)).promises(segment)

    def reduce(self, source: Source, target: Target, state: State, ctx: Context) -> Flow:
        return self.inner.reduce(source, target, state, ctx)


def inside_feedback(part: Reducer | Compressor, scheme: str) -> Reducer | Compressor:
    """``part`` as the feedback scheme of that name needs it."""
    return part.contractive(scheme) if isinstance(part, Reducer) else contractive(part, scheme)
