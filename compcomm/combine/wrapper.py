"""What wraps a reducer and keeps no residual of its own: it decides with which form of it a step runs."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from ..core.compressor import Compressor
from ..core.layout import Segment
from ..core.reducer import Reducer, settle
from ..core.state import Slot


@dataclass(frozen=True, repr=False)
class Around(Reducer, ABC, abstract=True):
    """Base of such wrappers. To write one, give the field ``reducer`` and ``reduce``."""

    if TYPE_CHECKING:
        reducer: Reducer | Compressor

    def __post_init__(self) -> None:
        if not isinstance(self.reducer, Reducer | Compressor):
            name = type(self).__name__
            raise TypeError(f"{name}({self.reducer!r}): give a compressor or a reducer, such as TopK(ratio=0.01).")

    def contractive(self, scheme: str) -> Reducer:
        return replace(self, reducer=self.reducer.contractive(scheme))

    def settle(self, world: int) -> Reducer:
        return replace(self, reducer=settle(self.reducer, world))

    def under_feedback(self, scheme: type[Reducer] | None) -> Reducer:
        return replace(self, reducer=self.inner.under_feedback(scheme))

    @property
    def inner(self) -> Reducer:
        """The reducer inside, once its route is chosen."""
        if not isinstance(self.reducer, Reducer):
            raise TypeError(f"{self!r}: no route yet. Call settle(reducer, world) first.")
        return self.reducer

    @property
    def stateful(self) -> bool:
        return self.inner.stateful

    @property
    def narrow(self) -> bool:
        return self.inner.narrow

    @property
    def weighs(self) -> bool:
        return self.inner.weighs

    @property
    def absence(self) -> bool:
        return self.inner.absence

    def slots(self, segment: Segment, world: int) -> Mapping[str, Slot]:
        return self.inner.slots(segment, world)

    def exact(self, segment: Segment) -> bool:
        return self.reducer.exact(segment)

    def in_order(self, slot: str, segment: Segment, joined: Tensor) -> Tensor:
        return self.inner.in_order(slot, segment, joined)

    def weight(self, slot: str, segment: Segment, rank: int, world: int) -> float:
        return self.inner.weight(slot, segment, rank, world)

    def conserves(self, segment: Segment) -> bool:
        return self.inner.conserves(segment)

    def delta(self, segment: Segment) -> float | None:
        return self.inner.delta(segment)
