"""Warmup: dense at first. Every method wants that, and a DDP hook, once registered, cannot be removed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ..core.compressor import Compressor
from ..core.context import Context
from ..core.reducer import Flow, Reducer
from ..core.source import Source, Target
from ..core.state import State
from ..core.traits import Traits
from ..routes.base import Route
from ..routes.exact import Exact
from .wrapper import Wrapper


@dataclass(frozen=True, repr=False)
class Warmup(Wrapper):
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

    def _feedback_hint(self, scheme: str) -> str:
        if isinstance(self.reducer, Compressor | Route):
            return f"Use Warmup({self.steps}, {scheme}({self.reducer!r}))."
        return f"{type(self.reducer).__name__} inside: {self.reducer._feedback_hint(scheme)}"

    def contractive(self, scheme: str) -> Reducer:
        return Reducer.contractive(self, scheme)

    @cached_property
    def traits(self) -> Traits:
        inside = super().traits
        return inside._replace(in_dtype=max(self.steps, inside.in_dtype))

    def reduce(self, source: Source, target: Target, state: State, ctx: Context) -> Flow:
        reducer = Exact() if ctx.step < self.steps else self.inner
        return reducer.reduce(source, target, state, ctx)
