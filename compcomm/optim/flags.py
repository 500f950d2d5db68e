"""What a rank tells the others in a step, in one small message."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .exchange import Exchange


class Told(NamedTuple):
    """What was said by any rank: ``has_gradient``: which parameters have a gradient."""

    bad: bool
    scaled: bool
    has_gradient: list[bool]


class Flags:
    """A byte for each: the step is bad, a ``GradScaler`` drives it, parameter i has a gradient.

    Kernels write the first where they meet a number that is not finite; the host reads all of them once, after they
    have gone over the ranks.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        self._shared = torch.zeros(2 + count, dtype=torch.uint8, device=device)
        self._mine = self._shared.clone()
        self._marks = [False] * (2 + count)
        self._status = self._shared[:1]
        self.unread = torch.zeros(1, dtype=torch.uint8, device=device)
        """For kernels whose answer is known."""

    def begin(self, bad: bool, scaled: bool, has_gradient: list[bool]) -> Tensor:
        """This rank's part; returns where kernels say whether the step is bad."""
        marks = [bad, scaled, *has_gradient]
        if marks != self._marks:  # seldom
            self._marks = marks
            self._mine.copy_(torch.tensor(marks, dtype=torch.uint8))
        self._shared.copy_(self._mine)
        return self._status

    def read(self, exchange: Exchange | None) -> Told:
        """What any rank says; one message where there are several."""
        shared = self._shared if exchange is None else exchange.any(self._shared)
        bad, scaled, *has_gradient = map(bool, shared.tolist())
        return Told(bad, scaled, has_gradient)
