"""L-GreCo: for each layer the setting that sends the fewest bytes at the same error as one setting for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any
from warnings import warn

import numpy as np

from ..combine.setting import setting
from ..core.compressor import Compressor
from ..core.layout import Layout
from ..core.reducer import Reducer
from . import measuring
from .allocate import allocate, allocate_bytes
from .controller import Controller
from .telemetry import Telemetry


@dataclass(frozen=True, repr=False)
class LGreCo(Controller):
    """min sum_l size_l(c_l)  s.t.  sum_l err_l(c_l) <= alpha * sum_l err_l(uniform), by a dynamic programme.

    err_l(c) is the L2 norm of what layer l's gathered gradient loses at setting c, size_l(c) the bytes. Errors are
    rounded up to 10,000 steps of the budget, so it is kept to the letter; where that costs more than the uniform
    setting, the uniform setting stays: never more error, never more bytes. What is gained grows with how unlike the
    layers are: an embedding beside small matrices gains most.

    Args:
        reducer: what is controlled: ``TopK``, ``RandK``, ``QSGD``, ``MinMax``, ``PowerSGD``, ... with any route and
            feedback around it, or around this (``EF21(LGreCo(TopK(ratio=0.01)))``); its own setting is the uniform one.
            An ``Accordion`` inside says what is uniform for each layer at the time.
        candidates: settings to choose from, as numbers or descriptions; None: densities of 1/16 to 16 times the
            uniform one, 2 to 8 bits, ranks from half to twice.
        every: steps between decisions.
        alpha: budget in multiples of the uniform setting's error.
        budget: "uniform"; or a float in (0, 1), the largest sum of errors as a share of the sum of norms; or an
            integer, bytes of payload per rank and step (coded parameters alone), within which the error is made least.
            An error that no choice meets ends the run at the first decision, in a message with the smallest that can be
            met. Gradients change: where a later decision finds none, the choice of least error is taken, with a warning
            on rank 0.
        window: steps whose gradients are gathered; None: 10, or ``every`` if that is less.

    State and timing: see ``Controller``. Source: Markov, Alimohammadi, Frantar, Alistarh 2022 (arXiv:2210.17357),
    Algorithm 1. Theirs reads rank 0's gradients; here each rank measures its share of the layers, on its own.
    """

    reducer: Reducer | Compressor
    candidates: Any = None
    every: int = 200
    alpha: float = 1.0
    budget: Any = "uniform"
    window: int | None = None

    guided = True

    def __post_init__(self) -> None:
        super().__post_init__()
        number = isinstance(self.alpha, int | float) and not isinstance(self.alpha, bool)
        if not number or not (self.alpha > 0 and isfinite(self.alpha)):
            raise ValueError(f"LGreCo(alpha={self.alpha!r}): a positive number; 1 is the uniform setting's error.")
        b = self.budget
        share = isinstance(b, float) and 0.0 < b < 1.0
        count = isinstance(b, int) and not isinstance(b, bool) and b >= 1
        if not (share or count or b == "uniform"):
            raise ValueError(
                f"LGreCo(budget={b!r}): give 'uniform', a relative error (a float in (0, 1)), or bytes per step (an "
                f"integer)."
            )
        self._check_candidates()
        if b != "uniform" and self.alpha != 1.0:
            raise ValueError(f"LGreCo(alpha={self.alpha!r}, budget={b!r}): alpha multiplies the uniform budget alone.")

    def _check_candidates(self) -> None:
        """Beside one setting for all, with its error as the budget, something must be gained somewhere and given back
        elsewhere."""
        if self.candidates is None or self.budget != "uniform" or isinstance(self.reducer, Controller):
            return
        own, call = setting("LGreCo", self.reducer), f"LGreCo(candidates={self.candidates!r})"
        if {*self.candidates} <= {own}:
            raise ValueError(f"{call}: there is nothing to choose from beside {own!r}. Give two or more.")
        if min(self.candidates) > own:
            raise ValueError(f"{call}: none sends less than {own!r}, the setting for all. Give some below it too.")
        if max(self.candidates) < own and self.alpha <= 1:
            raise ValueError(
                f"{call}: none loses less than {own!r}, the setting for all, whose error is the budget. Give some "
                f"above it too, or alpha above 1."
            )

    def check(self, layout: Layout) -> None:
        super().check(layout)
        if isinstance(self.budget, int):
            every = measuring.layers(s for s in layout.segments if s.numel and not self.exact(s))
            least = int(measuring.sizes(self.core, every, self.settings).min(axis=1).sum()) if every else 0
            if self.budget < least:
                raise ValueError(
                    f"LGreCo(budget={self.budget}): no choice is that small: the coded parameters take {least} bytes "
                    f"at least. Give that or more, or smaller candidates."
                )

    def decide(self, t: Telemetry) -> Sequence[float] | None:
        if not (np.isfinite(t.norms).all() and np.isfinite(t.errors).all() and t.norms.any()):
            return None
        rows = np.arange(len(t.names))
        if isinstance(self.budget, int):
            chosen = allocate_bytes(t.errors, t.sizes, limit=self.budget, reference=_within(t, self.budget))
        else:
            uniform = t.errors[rows, t.reference]
            relative = isinstance(self.budget, float)
            limit = float(self.budget * t.norms.sum() if relative else self.alpha * uniform.sum())
            reference = t.reference if uniform.sum() <= limit else None
            least = float(np.nanmin(t.errors, axis=1).sum())
            if least > limit:
                smallest = least / float(t.norms.sum() if relative else uniform.sum())
                name = "budget" if relative else "alpha"
                text = (
                    f"LGreCo({name}={getattr(self, name)!r}): no choice of candidates loses so little. The "
                    f"smallest that can be met is {name}={smallest:.4g}; or give candidates that send more."
                )
                if t.first:
                    raise ValueError(text)
                warn(f"{text} Until then it goes on with those that lose least.", RuntimeWarning, stacklevel=2)
                return [t.settings[i] for i in np.nanargmin(t.errors, axis=1)]
            chosen = allocate(t.errors, t.sizes, budget=limit, reference=reference)
        return [t.settings[int(i)] for i in chosen]


def _within(t: Telemetry, limit: int) -> Any:
    """The uniform setting, where it fits."""
    return t.reference if int(t.sizes[np.arange(len(t.names)), t.reference].sum()) <= limit else None
