"""1-bit Adam: Adam until step T, then momentum SGD whose step sizes are Adam's of step T; the momentum is averaged
compressed. W workers that hold the same x, m and v."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

F = np.float32
Mean = Callable[[list[np.ndarray]], np.ndarray]


class OneBitAdam:
    """``mean(inputs)`` is the compressed mean, with whatever memory it has; ``sizes`` cut x into parameters."""

    def __init__(
        self,
        x: np.ndarray,
        sizes: list[int],
        mean: Mean,
        freeze: int,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        decay: float = 0.0,
        v_floor: float = 0.1,
        bias_correction: bool = False,
    ) -> None:
        self.x, self.m, self.v = x.astype(F), np.zeros(len(x), F), np.zeros(len(x), F)
        self.sizes, self.mean, self.freeze, self.lr, self.betas = sizes, mean, freeze, lr, betas
        self.eps, self.decay, self.v_floor, self.bias_correction = eps, decay, v_floor, bias_correction
        self.t, self.denominator = 0, np.zeros(0, F)

    def step(self, gradients: list[np.ndarray]) -> None:
        b1, b2 = self.betas
        self.t += 1
        first = 1 - b1**self.t if self.bias_correction else 1.0
        second = (1 - b2**self.t) ** -0.5 if self.bias_correction else 1.0
        if self.t <= self.freeze:
            g = np.sum(gradients, 0, dtype=F) / F(len(gradients))
            self.m = F(b1) * self.m + F(1 - b1) * g
            self.v = F(b2) * self.v + F(1 - b2) * g * g
            d = np.sqrt(self.v) * F(second) + F(self.eps)
            if self.t == self.freeze:
                self.denominator = self.floor() * F(second) + F(self.eps)
        else:
            self.m = self.mean([F(b1) * self.m + F(1 - b1) * g for g in gradients])
            d = self.denominator
        self.x = self.x - (F(self.lr / first) * (self.m / d) + F(self.lr * self.decay) * self.x)

    def floor(self) -> np.ndarray:
        """sqrt(v), at least v_floor times its root mean square per parameter, or over everything where that is 0."""
        root, found, start = np.sqrt(self.v), [], 0
        everywhere = np.sqrt(np.mean(self.v.astype(np.float64)))
        for size in self.sizes:
            part = root[start : start + size]
            rms = np.sqrt(np.mean(np.square(part, dtype=np.float64)))
            least = self.v_floor * rms if rms else everywhere
            found.append(np.maximum(part, F(least)) if self.v_floor else part)
            start += size
        return np.concatenate(found)
