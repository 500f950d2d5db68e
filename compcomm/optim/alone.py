"""Parameters that DDP was told to ignore: every rank has its own, and steps them by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.compressor import ops
from . import foreach
from .flat import Flat, Groups

Rates = Callable[[Mapping[str, Any], int], tuple[float, float, float, float]]
"""Of a group's step number t: rate and correction of the variance, decay of the parameter and of its gradient."""


class Alone:
    """Adam from flat vectors, beside the steps that the ranks make together; its state never leaves the rank."""

    def __init__(self, groups: Groups) -> None:
        self.flat = Flat(groups)
        self.mean, self.square = self.flat.zeros(), self.flat.zeros()
        self.steps = 0

    def step(
        self, groups: Sequence[Mapping[str, Any]], scale: float, rates: Rates, grads: Callable[..., Sequence[Tensor]]
    ) -> None:
        """``scale`` times what ``grads`` gives of a part are its gradients. Parameters without one are passed over."""
        if not self.flat.params:
            return
        self.steps += 1
        has_gradient = [p.grad is not None for p in self.flat.params]
        for part in (part.pick(has_gradient) for part in self.flat.parts):
            if part.params:
                group = groups[part.group]
                rate, correction, decay, l2 = rates(group, self.steps)
                b1, b2 = map(float, group["betas"])
                ops.adam(
                    part.lying(part.params), grads(part), part.starts, self.mean, self.square, b1, b2,
                    -scale if group["maximize"] else scale, rate, correction, float(group["eps"]), decay, l2,
                )  # fmt: skip

    def bad(self) -> bool:
        """Whether a gradient is not finite."""
        return not foreach.finite([g for g in self._dense() if g.numel()])

    def spoil(self) -> None:
        """Makes all gradients NaN."""
        for g in self._dense():
            g.fill_(float("nan"))

    def _dense(self) -> list[Tensor]:
        found = [p.grad for p in self.flat.params if p.grad is not None]
        return [g for g in found if g.layout is torch.strided]  # others are an error in ``step``

    def vectors(self) -> dict[str, Tensor]:
        """By the names that they have in ``torch.optim``."""
        return {"exp_avg": self.mean, "exp_avg_sq": self.square}

    @torch.no_grad()
    def load(self, vectors: Mapping[str, Tensor], steps: int) -> None:
        self.mean.copy_(vectors["exp_avg"])
        self.square.copy_(vectors["exp_avg_sq"])
        self.steps = steps
