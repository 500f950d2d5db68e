"""What the feedback schemes share: they wrap a reducer, hold memory of their own, and work on unscaled gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch

from ..combine.wrapper import inside_feedback
from ..core.compressor import Compressor
from ..core.context import Context
from ..core.layout import Layout, Segment
from ..core.reducer import Flow, Reducer, Resolving
from ..core.source import Source, Target
from ..core.state import Merge, Slot, State
from ..core.traits import Promises, Traits


def is_number(value: object) -> bool:
    """Whether it is an int or a float, and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True, repr=False)
class FeedbackScheme(Reducer, ABC, abstract=True):
    """Base of the feedback schemes. To write one, give ``owner``, ``memory`` and ``step``."""

    reducer: Reducer | Compressor

    owner: ClassVar[type[Reducer] | None] = None
    """The scheme of the owners in two-phase. A scheme must name one."""
    integrates: ClassVar[bool] = False
    """As an owner's scheme: it serves only inside schemes whose mean is a sum over the steps."""
    absorbs: ClassVar[str] = "residual"
    """The slot that takes up an owner's residual when the number of workers changes."""

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.owner is None:
            raise TypeError(
                f"{name}({self.reducer!r}): the class does not say by which scheme owners keep what they lose. Give it "
                f"owner = ErrorFeedback, or EF21 where its mean is a sum over the steps."
            )
        if not isinstance(self.reducer, Reducer | Compressor):
            raise TypeError(f"{name}({self.reducer!r}): give a compressor or a reducer, such as TopK(0.01).")
        object.__setattr__(self, "reducer", inside_feedback(self.reducer, name))

    def _feedback_hint(self, scheme: str) -> str:
        return f"It has feedback already: use {self!r} as it is."

    def resolve(self, to: Resolving) -> Reducer:
        return replace(self, reducer=to.part(self.reducer, self.owner))

    @property
    def inner(self) -> Reducer:
        """The reducer inside, once its route is chosen."""
        if not isinstance(self.reducer, Reducer):
            raise TypeError(f"{self!r}: no route yet. Call settle(reducer, world) first.")
        return self.reducer

    @cached_property
    def traits(self) -> Traits:
        inside = super().traits
        return Traits(stateful=True, variable=inside.variable, named=inside.named, accumulates=inside.accumulates)

    def exact(self, segment: Segment) -> bool:
        return self.reducer.exact(segment)

    def promises(self, segment: Segment) -> Promises:
        return Promises(conserves=self.inner.promises(segment).conserves)

    def slots(self, segment: Segment, world: int) -> Mapping[str, Slot]:
        found = dict(self.memory(segment))
        for name, slot in self.inner.slots(segment, world).items():
            kept = slot.merge is Merge.SHARDED
            pending = slot.pending and not self.integrates
            found[name] = replace(slot, into=self.absorbs, pending=pending) if kept else slot
        return found

    def check(self, layout: Layout) -> None:
        if getattr(self, "dtype", None) == torch.float64:
            raise ValueError(
                f"{self!r}: a host averages in float32. dtype=float64 is for float64 gradients in the Simulator; leave "
                f"it out here."
            )
        super().check(layout)

    @abstractmethod
    def memory(self, segment: Segment) -> Mapping[str, Slot]:
        """The scheme's own slots."""

    @abstractmethod
    def step(self, source: Source, target: Target, state: State, ctx: Context) -> Flow:
        """target.out = (out if accumulate) + scale * the estimate of the mean gradient; ``source.decay * source.x`` is
        the unscaled gradient, there is no ``source.add``, and x may be overwritten."""

    def reduce(self, source: Source, target: Target, state: State, ctx: Context) -> Flow:
        if source.add is not None:
            raise TypeError(f"{self!r} holds its own memory: it takes a gradient, not Source(..., add=).")
        unscale, ctx.unscale = ctx.unscale, 1.0  # what is inside sees unscaled numbers
        given = Source(source.x, decay=source.decay * unscale)
        try:
            return (yield from self.step(given, target._replace(scale=target.scale / unscale), state, ctx))
        finally:
            ctx.unscale, ctx.status, ctx.weights = unscale, None, None
