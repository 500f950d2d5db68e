"""Deep gradient compression: every worker's momentum is taken before compression."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

F = np.float32


class DGC:
    """W workers. ``code(y, step)`` is decode(encode(y)); the mean is taken of what was decoded."""

    def __init__(
        self, world: int, numel: int, code: Callable[[np.ndarray, int], np.ndarray], momentum: float, nesterov: bool,
        clip: float | None, masking: bool,
    ) -> None:  # fmt: skip
        self.u = [np.zeros(numel, F) for _ in range(world)]
        self.v = [np.zeros(numel, F) for _ in range(world)]
        self.code, self.m, self.nesterov, self.masking = code, F(momentum), nesterov, masking
        self.limit = None if clip is None else clip * world**-0.5

    def step(self, gradients: list[np.ndarray], step: int) -> list[np.ndarray]:
        """What every worker sent (decoded)."""
        sent = []
        for rank, g in enumerate(gradients):
            if self.limit is not None:
                g = g * F(min(1.0, self.limit / np.sqrt(np.square(g.astype(np.float64)).sum())))
            if self.nesterov:
                self.u[rank] = self.m * self.u[rank] + self.m * g
                velocity = g + self.u[rank]
            else:
                self.u[rank] = self.m * self.u[rank] + g
                velocity = self.u[rank]
            p = self.v[rank] + velocity
            c = self.code(p, step)
            self.v[rank] = p - c
            if self.masking:
                self.u[rank] = np.where(c != 0, F(0), self.u[rank])
            sent.append(c)
        return sent
