"""1-bit LAMB: LAMB until step T, then momentum SGD whose step sizes are LAMB's of step T, but for a factor per
parameter that follows the variance; the momentum is averaged compressed. W workers hold the same x, m, v and w."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

F = np.float32
Mean = Callable[[list[np.ndarray]], np.ndarray]


def norm(x: np.ndarray) -> float:
    return float(np.sqrt(np.sum(np.square(x, dtype=np.float64))))


def rms(x: np.ndarray) -> float:
    return norm(x) / np.sqrt(len(x))


class OneBitLamb:
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
        limits: tuple[float, float] = (0.01, 10.0),
        coeff_beta: float = 0.9,
        factors: tuple[float, float] = (0.5, 4.0),
        threshold: float = 0.1,
    ) -> None:
        self.x, self.m, self.v = x.astype(F), np.zeros(len(x), F), np.zeros(len(x), F)
        self.cuts = [slice(end - size, end) for size, end in zip(sizes, np.cumsum(sizes), strict=True)]
        self.mean, self.freeze, self.lr, self.betas, self.eps, self.decay = mean, freeze, lr, betas, eps, decay
        self.v_floor, self.limits, self.coeff_beta = v_floor, limits, coeff_beta
        self.factors, self.threshold = factors, threshold
        self.t = 0
        self.w = self.d = np.zeros(0, F)
        self.floor = self.scale = np.zeros(0)
        self.c = np.ones(len(sizes))  # of the last step
        self.c_mean = np.zeros(len(sizes))  # 0: none yet
        self.phi = np.ones(len(sizes))

    def step(self, gradients: list[np.ndarray]) -> None:
        self.t += 1
        if self.t <= self.freeze:
            self.warm(np.sum(gradients, 0, dtype=F) / F(len(gradients)))
            if self.t == self.freeze:
                self.cool()
        else:
            self.travel(gradients)

    def warm(self, g: np.ndarray) -> None:
        b1, b2 = self.betas
        self.m = F(b1) * self.m + F(1 - b1) * g
        self.v = F(b2) * self.v + F(1 - b2) * g * g
        r = F(self.decay) * self.x + self.m / (np.sqrt(self.v) + F(self.eps))
        for i, cut in enumerate(self.cuts):
            weight, update = norm(self.x[cut]), norm(r[cut])
            c = float(np.clip(weight / update, *self.limits)) if weight and update else 1.0
            if c != 1.0:
                self.c_mean[i] = self.coeff_beta * self.c_mean[i] + (1 - self.coeff_beta) * c if self.c_mean[i] else c
            self.c[i] = c
            self.x[cut] -= F(self.lr * c) * r[cut]

    def cool(self) -> None:
        root = np.sqrt(self.v)
        everywhere = rms(root)
        each = [self.v_floor * rms(root[cut]) or everywhere * (self.v_floor > 0) for cut in self.cuts]
        self.floor = np.concatenate(
            [np.full(cut.stop - cut.start, f, F) for cut, f in zip(self.cuts, each, strict=True)]
        )
        self.d = np.maximum(root, self.floor) + F(self.eps)
        self.w = self.v.copy()
        sizes = [rms(self.m[cut]) for cut in self.cuts]
        scales = [np.mean(sizes) / size if size else 1.0 for size in sizes]
        self.scale = np.concatenate([np.full(c.stop - c.start, s, F) for c, s in zip(self.cuts, scales, strict=True)])
        self.c_mean[self.c_mean == 0] = 1.0

    def travel(self, gradients: list[np.ndarray]) -> None:
        b1, b2 = self.betas
        old = self.m
        self.m = self.mean([(F(b1) * old + F(1 - b1) * g) * self.scale for g in gradients]) / self.scale
        h = (self.m - F(b1) * old) / F(1 - b1)  # what the gradient must have been
        self.w = np.maximum(F(b2) * self.w, np.square(self.floor)) + F(1 - b2) * h * h
        u = self.m / self.d
        r = u + F(self.decay) * self.x
        for i, cut in enumerate(self.cuts):
            factor = float(np.max(self.d[cut] / (np.sqrt(self.w[cut]) + F(self.eps))))
            if self.decay:
                rho = min(1.0, norm(u[cut]) / norm(r[cut]))
                factor = factor * rho + 1 - rho
            factor = np.clip(factor, *self.factors)
            self.phi[i] = np.clip(factor, self.phi[i] * (1 - self.threshold), self.phi[i] * (1 + self.threshold))
            self.c[i] = self.c_mean[i] * self.phi[i]
            self.x[cut] -= F(self.lr * self.c[i]) * r[cut]
