"""ZeroOneAdam until the freeze: Adam whose variance is measured ever more rarely, with compressed gradients between."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..core.compressor import ops
from .base import CompressedOptimizer
from .flat import Batch, Part
from .intervals import refresh_interval
from .variance import freeze as freeze_variance


class RefreshedVariance(CompressedOptimizer):
    """``_mean`` is m, ``_square`` v, ``_denominator`` d; ``refreshes`` counts the steps in which v was measured."""

    refreshes: int
    v_floor: float
    var_update_scaler: int
    _mean: Tensor
    _square: Tensor
    _denominator: Tensor

    def _warmup_step(self, scale: float, bad: bool) -> bool:
        """A step of Adam; False: it was skipped."""
        g = self._room()
        self._gather(self._mean, g, scale, self._begin_flags(bad))
        has_gradient = self._has_gradient()
        if has_gradient is None:
            return False
        self.steps += 1
        interval = refresh_interval(self.refreshes, self.var_update_scaler)
        refresh = self.steps % interval == 0
        self.refreshes += refresh

        def arrived(batch: Batch) -> None:
            for part in (part.pick(has_gradient) for part in batch.parts):
                if part.params and refresh:
                    self._adam(part, g, interval == 1)
                elif part.params:
                    self._follow(part, g)
                    self._descend(part, self._mean)

        self._average(self.dense if refresh else self.exchange, g, arrived)
        rarely = refresh_interval(self.refreshes, self.var_update_scaler) > 1  # the next gradients may be compressed
        if refresh and rarely:
            self._measure()
            for part in () if interval == 1 else self.flat.parts:
                self._descend(part.pick(has_gradient), self._mean)
        return True

    def _adam(self, part: Part, g: Tensor, moves: bool) -> None:
        """Moments from the mean gradient; and the step, unless that waits for the floor of the new variance."""
        group = self.param_groups[part.group]
        decay, l2 = self._decay(group)
        rate, eps, decay = (self._rate(group), float(group["eps"]), decay) if moves else (0.0, 1.0, 0.0)
        b1, b2 = map(float, group["betas"])
        ops.adam(
            part.lying(part.params), self._found(part, g), part.starts, self._mean, self._square,
            b1, b2, 1.0, rate, self._correction(group), eps, decay, l2,
        )  # fmt: skip

    def _follow(self, part: Part, g: Tensor) -> None:
        """m <- b1 m + (1 - b1) g."""
        group = self.param_groups[part.group]
        ops.momentum(
            self._found(part, g), part.lying(part.params), part.starts, self._mean, self._mean,
            float(group["betas"][0]), 1.0, self._decay(group)[1], self._flags.unread,
        )  # fmt: skip

    def _descend(self, part: Part, mean: Tensor) -> None:
        """x <- x - lr (m/d + decay x)."""
        if part.params:
            group = self.param_groups[part.group]
            rate, decay = self._rate(group), self._decay(group)[0]
            ops.descend(part.lying(part.params), part.starts, mean, self._denominator, rate, decay)

    def _measure(self) -> None:
        """d of the present variance."""
        options = [(self._correction(g), float(g["eps"])) for g in self.param_groups]
        freeze_variance(self.flat, self._denominator.copy_(self._square), self.v_floor, options)

    def _rate(self, group: Mapping[str, Any]) -> float:
        return self._corrected(group, self.steps)[0]

    def _correction(self, group: Mapping[str, Any]) -> float:
        return self._corrected(group, self.refreshes)[1]
