"""PowerSGD (Vogels, Karimireddy, Jaggi 2019, arXiv:1905.13727, Algorithms 1 and 2) on one matrix of W workers.

Every worker adds its gradient to what it still owes, M_i = E_i + g_i. The mean of M_i Q (the last Q, made orthonormal)
says in which directions the columns of the mean matrix lie; made orthonormal it is P. The mean of M_i^T P is the new Q,
and P Q^T is applied. What of M_i is not in P Q^T (or in P Q_i^T, the worker's own part) is owed on.
"""

from __future__ import annotations

import numpy as np

from .philox import MASK, philox
from .sketch import quantiles


def gram_schmidt(a: np.ndarray) -> np.ndarray:
    """Orthonormal columns with the span of a's; a column that adds nothing to those before it becomes zero."""
    out = np.zeros(a.shape)
    for k in range(a.shape[1]):
        v = a[:, k].astype(np.float64)
        size = np.linalg.norm(v)
        for j in range(k):
            v = v - (out[:, j] @ v) * out[:, j]
        rest = np.linalg.norm(v)
        if rest > 1e-6 * size:
            out[:, k] = v / rest
    return out


def fresh(key: int, step: int, column: int, length: int) -> np.ndarray:
    """Normal numbers from 16 random bits each, the same for every worker: stream 6, the column in the rank's place."""
    table, out = quantiles(), np.empty(length)
    for i in range(length):
        superblock, place = divmod(i, 128)
        word = philox((superblock * 16 + place % 16, step & MASK, column, 6), key)[place // 32]
        out[i] = table[word >> 16 if place // 16 % 2 else word & 0xFFFF]
    return out


class PowerSGD:
    """W workers and one matrix of n rows and m columns. ``local``: which error; ``alternate``: one factor per step."""

    def __init__(self, world: int, n: int, m: int, rank: int, key: int, local: bool, alternate: bool) -> None:
        r = min(rank, n, m)
        self.errors = [np.zeros((n, m)) for _ in range(world)]
        self.p, self.q = np.zeros((n, r)), np.zeros((m, r))
        self.key, self.local, self.alternate = key, local, alternate

    def step(self, gradients: list[np.ndarray], step: int) -> np.ndarray:
        """What every worker applies."""
        owed = [e + g for e, g in zip(self.errors, gradients, strict=True)]
        if self.alternate and step % 2 == 1:
            self.p = gram_schmidt(self._filled(self.p, step))
            parts = [(self.p, m.T @ self.p) for m in owed]
            self.q = np.mean([q for _, q in parts], axis=0)
        elif self.alternate:
            self.q = gram_schmidt(self._filled(self.q, step))
            parts = [(m @ self.q, self.q) for m in owed]
            self.p = np.mean([p for p, _ in parts], axis=0)
        else:
            q = self._filled(gram_schmidt(self.q), step)
            self.p = gram_schmidt(np.mean([m @ q for m in owed], axis=0))
            parts = [(self.p, m.T @ self.p) for m in owed]
            self.q = np.mean([q for _, q in parts], axis=0)
        mean = self.p @ self.q.T
        self.errors = [m - (p @ q.T if self.local else mean) for m, (p, q) in zip(owed, parts, strict=True)]
        return mean

    def _filled(self, factor: np.ndarray, step: int) -> np.ndarray:
        """Columns of zeros drawn anew."""
        columns = [
            column if column.any() else fresh(self.key, step, k, len(column)) for k, column in enumerate(factor.T)
        ]
        return np.stack(columns, axis=1)
