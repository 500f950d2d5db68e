"""EF21: the change of an estimate is sent, and the mean of the estimates is the update."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

F = np.float32


class EF21:
    """W workers. ``code(y, rank, step)`` is decode(encode(y)). ``momentum`` 1 estimates the gradient itself."""

    def __init__(
        self,
        world: int,
        numel: int,
        code: Callable[[np.ndarray, int, int], np.ndarray],
        momentum: float = 1.0,
        start: bool = True,
    ) -> None:
        self.estimate = [np.zeros(numel, F) for _ in range(world)]
        self.v = [np.zeros(numel, F) for _ in range(world)]
        self.mean = np.zeros(numel, F)
        self.code, self.momentum, self.start = code, F(momentum), start

    def step(self, gradients: list[np.ndarray], step: int) -> np.ndarray:
        """The update."""
        world = len(gradients)
        if self.start and step == 0:
            self.estimate = [g.copy() for g in gradients]
            self.v = [g.copy() for g in gradients]
            self.mean = np.sum(gradients, axis=0, dtype=F) / F(world)
            return self.mean.copy()
        for rank, gradient in enumerate(gradients):
            self.v[rank] = (F(1) - self.momentum) * self.v[rank] + self.momentum * gradient
            c = self.code(self.v[rank] - self.estimate[rank], rank, step)
            self.estimate[rank] = self.estimate[rank] + c
            self.mean = self.mean + c / F(world)
        return self.mean.copy()
