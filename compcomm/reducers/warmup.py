"""Warmup: dense at first. Every method wants that, and a DDP hook, once registered, cannot be removed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..bucket import Bucket, Segment
from ..compressor import Compressor
from ..reducer import Context, Flow, Reducer, settle
from ..store import Slot, State
from .exact import Exact
from .route import Route


@dataclass(frozen=True, repr=False)
class Warmup(Reducer):
    """``Exact()`` in steps 0 to steps-1, ``reducer`` from then on.

    The step is counted by the host and kept in its checkpoint, so a resumed run does not warm up again. State is the
    reducer's, made at the beginning.
    """

    steps: int
    reducer: Reducer | Compressor

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 0:
            raise ValueError(f"Warmup(steps={self.steps!r}): the number of dense steps is an integer, 0 or more.")
        if not isinstance(self.reducer, Reducer | Compressor):
            raise TypeError(f"Warmup({self.steps}, {self.reducer!r}): give a compressor or a reducer.")

    def feedback_cure(self, scheme: str) -> str:
        if isinstance(self.reducer, Compressor | Route):
            return f"Use Warmup({self.steps}, {scheme}({self.reducer!r}))."
        return f"{type(self.reducer).__name__} inside: {self.reducer.feedback_cure(scheme)}"

    def settle(self, world: int) -> Reducer:
        return Warmup(self.steps, settle(self.reducer, world))

    @property
    def _inner(self) -> Reducer:
        if not isinstance(self.reducer, Reducer):
            raise TypeError(f"{self!r}: no route yet. Call settle(reducer, world) first.")
        return self.reducer

    @property
    def stateful(self) -> bool:
        return self._inner.stateful

    def native(self, step: int) -> bool:
        return step < self.steps or self._inner.native(step)

    def slots(self, segment: Segment, world: int) -> Mapping[str, Slot]:
        return self._inner.slots(segment, world)

    def exact(self, segment: Segment) -> bool:
        return self.reducer.exact(segment)

    def in_order(self, slot: str, segment: Segment, joined: Tensor) -> Tensor:
        return self._inner.in_order(slot, segment, joined)

    def weight(self, slot: str, segment: Segment, rank: int, world: int) -> float:
        return self._inner.weight(slot, segment, rank, world)

    def conserves(self, segment: Segment) -> bool:
        return self._inner.conserves(segment)

    def delta(self, segment: Segment) -> float | None:
        return self._inner.delta(segment)

    def reduce(
        self,
        x: Bucket,
        out: Bucket,
        state: State,
        ctx: Context,
        *,
        add: Bucket | None = None,
        decay: float = 1.0,
        add_scale: float = 1.0,
        out_scale: float = 1.0,
        accumulate: bool = False,
    ) -> Flow:
        reducer = Exact() if ctx.step < self.steps else self._inner
        return (
            yield from reducer.reduce(
                x, out, state, ctx,
                add=add, decay=decay, add_scale=add_scale, out_scale=out_scale, accumulate=accumulate,
            )
        )  # fmt: skip
