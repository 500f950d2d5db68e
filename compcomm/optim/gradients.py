"""A rank's own gradients and momentum as flat vectors, and the numbers of a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.compressor import ops
from .contract import Contract
from .flat import Part
from .parameters import check_gradient


class Gradients(Contract):
    """Nothing of this waits for another rank."""

    def _begin_flags(self, bad: bool) -> Tensor:
        """A step's flags; returns where kernels say whether it is bad."""
        return self._flags.begin(bad, self._driven, [p.grad is not None for p in self.flat.params])

    def _grads(self, part: Part) -> Sequence[Tensor]:
        """The part's gradients, as the flat vectors lie; an empty tensor where there is none."""
        grads = [_EMPTY if p.grad is None else p.grad for p in part.params]
        if any(g.layout is not torch.strided for g in grads):
            for p in part.params:
                if p.grad is not None:
                    check_gradient(self._call, self._names[id(p)], p.grad)
        return part.lying(grads)

    def _room(self) -> Tensor:
        """A flat vector of whatever content, made once it is needed."""
        if self._spare is None:
            self._spare = self.flat.zeros()
        return self._spare

    def _momentum(self, mean: Tensor, out: Tensor, scale: float, status: Tensor) -> None:
        """out = b1 mean + (1 - b1) g for this rank's gradient g; ``status``: whether some of it is not finite."""
        self._axpby(mean, out, scale, [float(g["betas"][0]) for g in self.param_groups], 1.0, status)

    def _gather(self, finite: Tensor, out: Tensor, scale: float, status: Tensor) -> None:
        """out = this rank's gradient, unscaled, without weight decay; ``status``: whether some of it is not finite.
        ``finite``: any flat vector whose elements are."""
        self._axpby(finite, out, scale, [0.0] * len(self.param_groups), 0.0, status)

    def _axpby(self, mean: Tensor, out: Tensor, scale: float, betas: list[float], decay: float, status: Tensor) -> None:
        for part in self.flat.parts:
            if part.params:
                group = self.param_groups[part.group]
                sign = -scale if group["maximize"] else scale
                ops.momentum(
                    self._grads(part), part.lying(part.params), part.starts, mean, out,
                    betas[part.group], sign, decay * self._decay(group)[1], status,
                )  # fmt: skip

    def _found(self, part: Part, flat: Tensor) -> Sequence[Tensor]:
        """What a flat vector has for the part's parameters, as the vector lies."""
        return part.lying([self.flat.view(flat, n) for n in part.numbers])

    def _decay(self, group: Mapping[str, Any]) -> tuple[float, float]:
        """What a step takes from a parameter, as a part of it; and what is added to its gradient, the same way."""
        if group["decoupled_weight_decay"]:
            return float(group["lr"]) * float(group["weight_decay"]), 0.0
        return 0.0, float(group["weight_decay"])

    def _rates(self, group: Mapping[str, Any], step: int) -> tuple[float, float, float, float]:
        """Of a rank's own parameters: see ``alone.Rates``."""
        return (*self._corrected(group, step), *self._decay(group))

    def _corrected(self, group: Mapping[str, Any], step: int) -> tuple[float, float]:
        """The rate, and what sqrt(v) is multiplied by, in the step of this number; with ``bias_correction`` Adam's."""
        rate = float(group["lr"])
        if not self._facts.get("bias_correction") or not step:
            return rate, 1.0
        b1, b2 = map(float, group["betas"])
        return rate / (1.0 - b1**step), (1.0 - b2**step) ** -0.5


_EMPTY = torch.empty(0, dtype=torch.float32)
