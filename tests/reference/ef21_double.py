"""EF21 in double precision, with weights and with workers that sit steps out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np

Array = np.ndarray


class EF21:
    """W workers, estimates h, v and their (weighted) mean. ``code(y, rank, step)`` is decode(encode(y))."""

    def __init__(
        self,
        world: int,
        code: Callable[[Array, int, int], Array],
        *,
        momentum: float = 1.0,
        weights: Sequence[float] | None = None,
        start: bool = True,
    ) -> None:
        self.world, self.code, self.momentum, self.start = world, code, momentum, start
        self.weights = np.full(world, 1 / world) if weights is None else np.array(weights)
        self.h: list[Array] = []
        self.v: list[Array] = []

    def step(self, gradients: Sequence[Array], step: int, present: Collection[int] | None = None) -> Array:
        here = range(self.world) if present is None else present
        if not self.h:
            self.h = [0 * g for g in gradients]
            self.v = [0 * g for g in gradients]
            if self.start:
                self.v = [g.copy() for g in gradients]
                self.h = [g / (self.world * w) for g, w in zip(gradients, self.weights, strict=True)]
                return self.mean()
        for rank in here:
            self.v[rank] = (1 - self.momentum) * self.v[rank] + self.momentum * gradients[rank]
            target = self.v[rank] / (self.world * self.weights[rank])
            self.h[rank] = self.h[rank] + self.code(target - self.h[rank], rank, step)
        return self.mean()

    def mean(self) -> Array:
        return sum((w * h for w, h in zip(self.weights, self.h, strict=True)), 0 * self.h[0])
