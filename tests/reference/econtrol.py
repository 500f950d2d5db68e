"""EControl: EF21's estimates, and a residual that is fed back at the rate eta."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

F = np.float32


class EControl:
    """W workers. ``code(y, rank, step)`` is decode(encode(y))."""

    def __init__(
        self,
        world: int,
        numel: int,
        code: Callable[[np.ndarray, int, int], np.ndarray],
        eta: float,
        start: bool = True,
    ) -> None:
        self.estimate = [np.zeros(numel, F) for _ in range(world)]
        self.error = [np.zeros(numel, F) for _ in range(world)]
        self.mean = np.zeros(numel, F)
        self.code, self.eta, self.start = code, F(eta), start

    def step(self, gradients: list[np.ndarray], step: int) -> np.ndarray:
        """The update."""
        world = len(gradients)
        if self.start and step == 0:
            self.estimate = [g.copy() for g in gradients]
            self.mean = np.sum(gradients, axis=0, dtype=F) / F(world)
            return self.mean.copy()
        for rank, g in enumerate(gradients):
            c = self.code(self.eta * self.error[rank] + g - self.estimate[rank], rank, step)
            self.estimate[rank] = self.estimate[rank] + c
            self.error[rank] = self.error[rank] + g - self.estimate[rank]
            self.mean = self.mean + c / F(world)
        return self.mean.copy()
