"""Error feedback: what could not be sent is added to what is to be sent next."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


class ErrorFeedback:
    """W workers. ``code(y, rank, step)`` is decode(encode(y)); the mean is taken of what was decoded."""

    def __init__(self, world: int, numel: int, code: Callable[[np.ndarray, int, int], np.ndarray]) -> None:
        self.residual = [np.zeros(numel, np.float32) for _ in range(world)]
        self.code = code

    def step(self, gradients: list[np.ndarray], step: int) -> list[np.ndarray]:
        """What every worker sent (decoded); their mean is the update."""
        sent = []
        for rank, gradient in enumerate(gradients):
            p = self.residual[rank] + gradient
            c = self.code(p, rank, step)
            self.residual[rank] = p - c
            sent.append(c)
        return sent
