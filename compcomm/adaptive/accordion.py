"""Accordion: little compression while a layer's gradient changes fast, much while it does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..combine.candidates import number
from ..combine.setting import setting
from ..core.compressor import Compressor
from ..core.layout import Layout
from ..core.reducer import Reducer
from .controller import Controller
from .telemetry import Telemetry


class _Lower(float):
    """A setting that was below the reducer's own when it was given. L-GreCo around tries the same Accordion with other
    settings inside, and these are no mistakes: a form that is made from another is checked at attach alone."""

    def __repr__(self) -> str:
        return repr(int(self)) if self.is_integer() else super().__repr__()


@dataclass(frozen=True, repr=False)
class Accordion(Controller):
    """For each layer and interval, with G the gradient summed over the interval: where
    | |G_before| - |G| | / |G_before| >= eta the layer is in a critical regime and has the reducer's own setting;
    elsewhere it has ``high``, which compresses more.

    ``Accordion(ErrorFeedback(TopK(ratio=0.1)), high=0.01)``. In the first interval, and where a layer had no gradient,
    the own setting. ``LGreCo(Accordion(...))`` gives every layer its best setting at the error that these two allow.

    Args:
        reducer: what is controlled, at the setting of critical regimes.
        high: the other setting, as a number or a description.
        every: steps of an interval; an epoch or several, as published.
        eta: the relative change from which a regime is critical.
        window: the last steps of an interval that are summed; None: all of them, as published, at the cost of a pass
            over the gradients in every step (ResNet-50: 35 ms on one core). ``window=10`` sums the last ten alone, as
            the other controllers do.

    State and timing: see ``Controller``, with a lag of 0: it asks for norms alone, 8 bytes per parameter and interval,
    and a decision takes effect in the step after its interval.

    Source: Agarwal, Wang, Lee, Venkataraman, Papailiopoulos 2021 (arXiv:2010.16248), Algorithm 1. Theirs also goes back
    to the first setting when the learning rate falls; a reducer is not told of rates.
    """

    reducer: Reducer | Compressor
    high: Any
    every: int = 200
    eta: float = 0.5
    window: int | None = None

    measures = False

    def __post_init__(self) -> None:
        setting("Accordion", self.reducer)
        high = number("Accordion", self.reducer, "high", self.high)
        if not isinstance(high, _Lower):
            self._check(high)
        object.__setattr__(self, "high", _Lower(high))
        super().__post_init__()
        valid = isinstance(self.eta, int | float) and not isinstance(self.eta, bool)
        if not valid or not self.eta >= 0.0:
            raise ValueError(f"Accordion(eta={self.eta!r}): a relative change, 0 or more; 0.5 as published.")

    @property
    def candidates(self) -> tuple[float, ...]:
        return (self.high,)

    @property
    def gathers(self) -> int:
        return self.every if self.window is None else self.window

    @property
    def lag(self) -> int:
        return 0

    def check(self, layout: Layout) -> None:
        super().check(layout)
        self._check(self.high)

    def _check(self, high: float) -> None:
        own = setting("Accordion", self.reducer)
        if not high < own:
            raise ValueError(
                f"Accordion(high={high!r}): {self.reducer!r} has {own!r} in critical regimes, and that must be more. "
                f"Exchange the two numbers."
            )

    def decide(self, t: Telemetry) -> Sequence[float]:
        low = setting("Accordion", self.reducer)
        with np.errstate(divide="ignore", invalid="ignore"):
            change = np.abs(t.before - t.norms) / t.before
        calm = (t.before > 0) & (change < self.eta)
        return [self.high if c else low for c in calm]
