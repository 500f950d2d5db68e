"""Uncompensated: no feedback, said aloud. The yardstick that feedback is measured against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

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
from ..feedback.base import Scheme
from ..routes.powersgd import PowerSGD


@dataclass(frozen=True, repr=False)
class Uncompensated(Reducer):
    """send c = C(g), and forget g - c;  out = mean of c over the ranks.

    What the wrapped reducer does by itself, under a name that says so in a table of results. Right for unbiased
    compressors. With a biased one the errors add up: Top-1 diverges on three quadratics, however small the step is.

    Learning rate: no memory, nothing to rescale. State, bytes and delta are the wrapped reducer's own.

    Source: the counterexample is Beznosikov et al. 2020 (arXiv:2002.12410), Example 1.
    """

    reducer: Reducer | Compressor

    def __post_init__(self) -> None:
        if not isinstance(self.reducer, Reducer | Compressor):
            raise TypeError(f"Uncompensated({self.reducer!r}): give a compressor or a reducer, such as TopK(0.01).")
        if isinstance(self.reducer, Scheme | PowerSGD):
            raise ValueError(f"Uncompensated({self.reducer!r}): it has feedback. Use {self.reducer!r} as it is.")

    def settle(self, world: int) -> Reducer:
        return Uncompensated(settle(self.reducer, world))

    def feedback_cure(self, scheme: str) -> str:
        return f"It is to have none. Use {scheme}({self.reducer!r})."

    @property
    def _inner(self) -> Reducer:
        if not isinstance(self.reducer, Reducer):
            raise TypeError(f"{self!r}: no route yet. Call settle(reducer, world) first.")
        return self.reducer

    @property
    def stateful(self) -> bool:
        return self._inner.stateful

    @property
    def weighs(self) -> bool:
        return self._inner.weighs

    @property
    def absence(self) -> bool:
        return self._inner.absence

    def native(self, step: int) -> bool:
        return self._inner.native(step)

    def slots(self, segment: Segment, world: int) -> Mapping[str, Slot]:
        return self._inner.slots(segment, world)

    def exact(self, segment: Segment) -> bool:
        return self.reducer.exact(segment)

    def delta(self, segment: Segment) -> float | None:
        return self._inner.delta(segment)

    def conserves(self, segment: Segment) -> bool:
        return self._inner.conserves(segment)

    def weight(self, slot: str, segment: Segment, rank: int, world: int) -> float:
        return self._inner.weight(slot, segment, rank, world)

    def in_order(self, slot: str, segment: Segment, joined: Tensor) -> Tensor:
        return self._inner.in_order(slot, segment, joined)

    def reduce(self, source: Source, target: Target, state: State, ctx: Context) -> Flow:
        return (yield from self._inner.reduce(source, target, state, ctx))
