"""Error feedback: what could not be sent is added to what is to be sent next."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

F = np.float32


def _as_it_is(e: np.ndarray) -> np.ndarray:
    return e


class ErrorFeedback:
    """W workers. ``code(y, rank, step)`` is decode(encode(y)); the mean is taken of what was decoded. ``store`` is what
    the residual becomes by being stored."""

    def __init__(
        self,
        world: int,
        numel: int,
        code: Callable[[np.ndarray, int, int], np.ndarray],
        decay: float = 1.0,
        average: float = 1.0,
        reset: int = 0,
        store: Callable[[np.ndarray], np.ndarray] = _as_it_is,
    ) -> None:
        self.residual = [np.zeros(numel, F) for _ in range(world)]
        self.code, self.decay, self.average, self.reset, self.store = code, decay, average, reset, store

    def step(self, gradients: list[np.ndarray], step: int) -> list[np.ndarray]:
        """What every worker sent (decoded); their mean is the update."""
        sent = []
        for rank, gradient in enumerate(gradients):
            e = self.residual[rank]
            if self.reset and step and step % self.reset == 0:
                e = np.zeros_like(e)
            p = F(self.decay) * e + gradient
            c = self.code(p, rank, step)
            error = p - c
            if self.average < 1.0:
                error = F(1.0 - self.average) * e + F(self.average) * error
            self.residual[rank] = self.store(error)
            sent.append(c)
        return sent
