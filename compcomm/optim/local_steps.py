"""What a rank has done by itself since the ranks last synchronised, and the way back: x = P (x_sync - u/d)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core.state import StateError
from . import foreach


class LocalSteps:
    """``count``: how many steps; ``anchor``: x_sync, once there are any. By group: ``travelled``, s = sum of lr/P; and
    ``shrunk``, P = product of 1 - lr decay."""

    def __init__(self, groups: int) -> None:
        self.anchor: list[Tensor] = []
        self.begin(groups)

    def begin(self, groups: int) -> None:
        """The ranks have the same parameters."""
        self.count = 0
        self.travelled, self.shrunk = [0.0] * groups, [1.0] * groups

    def leave(self, params: Sequence[nn.Parameter]) -> None:
        """A step of this rank's own begins: before the first one x_sync <- x."""
        if not self.count:
            if not self.anchor:
                self.anchor = [torch.empty_like(p) for p in params]
            foreach.copy(self.anchor, params)
        self.count += 1

    def weigh(self, group: int, rate: float, decay: float) -> float:
        """A step at this rate and decay: returns lr/P, by which its momentum counts in u."""
        self.shrunk[group] *= 1.0 - decay
        weight = rate / self.shrunk[group]
        self.travelled[group] += weight
        return weight

    # Checkpoints.

    def extra(self) -> dict[str, Any] | None:
        """The numbers; None where there are no steps. ``anchor`` goes with the parameters."""
        if not self.count:
            return None
        return {"steps": self.count, "travelled": list(self.travelled), "shrunk": list(self.shrunk)}

    def load(self, extra: Mapping[str, Any], anchor: Sequence[Tensor], params: Sequence[nn.Parameter]) -> None:
        """Takes what ``extra`` returned, and x_sync."""
        self.anchor = [torch.empty_like(p).copy_(t) for p, t in zip(params, anchor, strict=True)]
        self.travelled, self.shrunk = list(extra["travelled"]), list(extra["shrunk"])
        self.count = extra["steps"]


def check_local(
    extra: Mapping[str, Any], tensors: Mapping[str, Sequence[Any]], params: Sequence[nn.Parameter], groups: int
) -> None:
    """Raises StateError where ``LocalSteps.load`` could not take these; ``tensors``: of the parameters, by name."""
    for name, found in tensors.items():
        shapes = [t.shape if isinstance(t, Tensor) and t.dtype.is_floating_point else None for t in found]
        if shapes != [p.shape for p in params]:
            raise StateError(
                f"load_state_dict: this rank's {name!r}, of its steps since the last synchronisation, is missing or of "
                f"others. Give each rank the state_dict() that it saved itself, of this model."
            )
    if not isinstance(extra.get("steps"), int) or extra["steps"] < 1:
        raise StateError(f"load_state_dict: {extra.get('steps')!r} local steps. Use an older checkpoint.")
    for name in ("travelled", "shrunk"):
        if not isinstance(extra.get(name), list) or len(extra[name]) != groups:
            raise StateError(
                f"load_state_dict: {name}={extra.get(name)!r} where {groups} numbers are due. Use an older checkpoint."
            )
