"""0/1 Adam: Adam whose variance is refreshed ever more rarely, with compressed gradients in between; after step T the
variance stays, and the workers go on alone, and meet ever more rarely. W workers, each with its own x and m."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

F = np.float32
Vectors = list[np.ndarray]
Mean = Callable[[Vectors], np.ndarray]


class ZeroOneAdam:
    """``memory()`` makes a compressed mean that has sent nothing yet; ``sizes`` cut x into parameters."""

    def __init__(
        self,
        x: np.ndarray,
        sizes: list[int],
        workers: int,
        memory: Callable[[], Mean],
        freeze: int,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        decay: float = 0.0,
        v_floor: float = 0.1,
        var_update_scaler: int = 16,
        local_step_scaler: int = 1000,
        local_step_clipper: int = 16,
        bias_correction: bool = False,
    ) -> None:
        self.sizes, self.memory, self.freeze, self.lr, self.betas = sizes, memory, freeze, lr, betas
        self.eps, self.decay, self.v_floor, self.bias_correction = eps, decay, v_floor, bias_correction
        self.var_update_scaler, self.local_step_scaler = var_update_scaler, local_step_scaler
        self.local_step_clipper = local_step_clipper
        self.x = [x.astype(F) for _ in range(workers)]
        self.m = [np.zeros(len(x), F) for _ in range(workers)]
        self.v, self.mean = np.zeros(len(x), F), memory()
        self.t = self.refreshes = 0
        self.refreshed, self.met = list[int](), list[int]()  # in which steps

    def step(self, gradients: Vectors) -> None:
        self.t += 1
        b1, b2 = self.betas
        rate = self.lr / (1 - b1**self.t) if self.bias_correction else self.lr
        if self.t > self.freeze:
            self.alone(gradients, rate)
            return
        interval = 2 ** (self.refreshes // self.var_update_scaler)
        if self.t % interval == 0:
            g = np.sum(gradients, 0, dtype=F) / F(len(gradients))
            self.v = F(b2) * self.v + F(1 - b2) * g * g
            self.refreshes += 1
            self.refreshed.append(self.t)
        else:
            g = self.mean(gradients)
        second = (1 - b2**self.refreshes) ** -0.5 if self.bias_correction else 1.0
        m = F(b1) * self.m[0] + F(1 - b1) * g
        d = (np.sqrt(self.v) if interval == 1 else self.floor()) * F(second) + F(self.eps)
        x = self.x[0] - (F(rate) * (m / d) + F(self.lr * self.decay) * self.x[0])
        self.x, self.m = [x] * len(gradients), [m] * len(gradients)
        if self.t == self.freeze:
            self.d = self.floor() * F(second) + F(self.eps)
            self.mean = self.memory()
            self.begin()

    def begin(self) -> None:
        self.sync, self.u, self.s, self.p = self.x[0], [np.zeros_like(m) for m in self.m], 0.0, 1.0

    def alone(self, gradients: Vectors, rate: float) -> None:
        b1 = self.betas[0]
        self.p *= 1 - self.lr * self.decay
        self.s += rate / self.p
        for i, g in enumerate(gradients):
            self.m[i] = F(b1) * self.m[i] + F(1 - b1) * g
            self.x[i] = self.x[i] - (F(rate) * (self.m[i] / self.d) + F(self.lr * self.decay) * self.x[i])
            self.u[i] = self.u[i] + F(rate / self.p) * self.m[i]
        k = self.t - self.freeze
        if k % min(self.local_step_clipper, 2 ** ((k - 1) // self.local_step_scaler)) == 0:
            self.meet()

    def meet(self) -> None:
        m = self.mean([u * F(1 / self.s) for u in self.u])
        x = self.sync - (F(self.p * self.s) * (m / self.d) + F(1 - self.p) * self.sync)
        self.x, self.m = [x] * len(self.x), [m] * len(self.m)
        self.met.append(self.t)
        self.begin()

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
