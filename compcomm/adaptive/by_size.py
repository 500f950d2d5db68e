"""SizeRule: a setting by the size of a layer and the phase of the training, without any statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite, prod
from typing import Any

from ..combine.candidates import number, roomy
from ..combine.per_parameter import assigned, check_assignable
from ..combine.setting import (
    field,
    refuse_inner,
    setting,
    tuned,
)
from ..combine.wrapper import Wrapper, inside_feedback
from ..core.compressor import Compressor
from ..core.context import Context
from ..core.layout import Layout, Segment
from ..core.reducer import Flow, Reducer
from ..core.source import Source, Target
from ..core.state import Slot, State
from ..core.traits import Promises, weakest


@dataclass(frozen=True, repr=False)
class SizeRule(Wrapper):
    """Layers of ``threshold`` elements or more have the setting ``large``, all others the reducer's own; in the first
    ``steps`` steps both are multiplied by ``early``.

    Large layers bear more compression, and the early phase less: a rule that costs nothing, for comparison with those
    that measure. ``SizeRule(ErrorFeedback(TopK(ratio=0.02)), large=0.005, early=4, steps=500)``. Bits and ranks are
    rounded. No state of its own, no messages; promises are those of what is inside.

    Args:
        reducer: what is controlled, at the setting of small layers.
        large: the setting of large layers, as a number or a description.
        threshold: elements from which a layer is large.
        early: the factor in the early phase, above 0; 1: none.
        steps: of the early phase.

    Source: in the manner of "LEGACY: A Lightweight Dynamic Gradient Compression Strategy for Distributed Deep Learning"
    (2025; ICLR 2026, openreview.net/forum?id=DsBYEO3B8O), whose settings follow the layer's size and the training's
    phase as well. Two classes of size, two phases, and a factor that joins them: this rule to the letter is ours.
    """

    reducer: Reducer | Compressor
    large: Any
    threshold: int = 1 << 16
    early: float = 1.0
    steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        setting("SizeRule", self.reducer)
        check_assignable("SizeRule", self.reducer)
        refuse_inner("SizeRule", self.reducer)
        object.__setattr__(self, "large", number("SizeRule", self.reducer, "large", self.large))
        for name, least in (("threshold", 1), ("steps", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"SizeRule({name}={value!r}): an integer, {least} or more.")
        valid = isinstance(self.early, int | float) and not isinstance(self.early, bool)
        if not valid or not (self.early > 0 and isfinite(self.early)):
            raise ValueError(
                f"SizeRule(early={self.early!r}): a factor above 0; above 1 sends more in the early phase."
            )
        for value in self.settings:
            try:
                tuned(self.reducer, value)
            except ValueError as error:
                raise ValueError(f"SizeRule(early={self.early!r}): {value!r} does not serve: {error}") from None

    @property
    def settings(self) -> tuple[float, ...]:
        """All that a parameter may get."""
        both = (setting("SizeRule", self.reducer), self.large)
        return tuple(sorted({*both, *(self._times(value) for value in both)}))

    def _times(self, value: float) -> float:
        return min(1.0, value * self.early) if field(self.reducer) == "ratio" else round(value * self.early)

    def at(self, segment: Segment, step: int) -> float:
        """The setting of a parameter in a step."""
        value = self.large if prod(segment.shape) >= self.threshold else setting("SizeRule", self.reducer)
        return self._times(value) if step < self.steps else value

    def scheduled(self, segments: Sequence[Segment], step: int) -> dict[str, float]:
        return {s.name: self.at(s, step) for s in segments if s.numel and not self.exact(s)}

    def contractive(self, scheme: str) -> Reducer:
        for value in self.settings:
            inside_feedback(tuned(self.reducer, value), scheme)
        return super().contractive(scheme)

    def slots(self, segment: Segment, world: int) -> Mapping[str, Slot]:
        return roomy(self.reducer, self.settings).slots(segment, world)

    def promises(self, segment: Segment) -> Promises:
        return weakest([tuned(self.inner, value).promises(segment) for value in self.settings])

    def reduce(self, source: Source, target: Target, state: State, ctx: Context) -> Flow:
        inner = _sorted(self, source.layout, ctx.step < self.steps)
        return inner.reduce(source, target, state, ctx)


@lru_cache(maxsize=4096)
def _sorted(rule: SizeRule, layout: Layout, early: bool) -> Any:
    step = 0 if early else rule.steps
    values = {s.name: rule.at(s, step) for s in layout.segments if s.numel and not rule.exact(s)}
    own = setting("SizeRule", rule.reducer)
    return assigned(roomy(rule.inner, rule.settings), tuple(sorted((n, v) for n, v in values.items() if v != own)))
