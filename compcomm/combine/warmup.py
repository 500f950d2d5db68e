"""Warmup: dense at first. Every method wants that, and a DDP hook, once registered, cannot be removed."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.compressor import Compressor
from ..core.reducer import Context, Flow, Reducer
from ..core.source import Source, Target
from ..core.state import State
from ..routes.base import Route
from ..routes.exact import Exact
from .wrapper import Around


@dataclass(frozen=True, repr=False)
class Warmup(Around):
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

    def contractive(self, scheme: str) -> Reducer:
        return Reducer.contractive(self, scheme)

    def native(self, step: int) -> bool:
        return step < self.steps or self.inner.native(step)

    def reduce(self, source: Source, target: Target, state: State, ctx: Context) -> Flow:
        reducer = Exact() if ctx.step < self.steps else self.inner
        return (yield from reducer.reduce(source, target, state, ctx))
