"""Rotated: random signs and a Hadamard transform before the quantiser, and both undone after it.

A vector is cut into blocks, and its tail into descending powers of two, so every part has a power of two of elements:
2049 elements in blocks of 512 are 4 x 512 + 1. Each part of n elements is multiplied by +-1/sqrt(n) and then by the
matrix of plus and minus ones H_2n = [[H_n, H_n], [H_n, -H_n]]. That is symmetric, and its square is n times the unit
matrix, so the same again, signs last, gives the vector back.
"""

from __future__ import annotations

import numpy as np

from .philox import MASK, philox

F = np.float32


def parts(numel: int, block: int) -> list[slice]:
    """Where each part lies."""
    found, at = [], 0
    while at < numel:
        size = block
        while size > numel - at:
            size //= 2
        found.append(slice(at, at + size))
        at += size
    return found


def signs(key: int, offset: int, numel: int, step: int) -> np.ndarray:
    """One bit each, 128 to a draw; 1 is minus."""
    out = np.empty(numel, F)
    for i in range(numel):
        draw, place = divmod(offset + i, 128)
        word = philox((draw & MASK, step & MASK, 0, 2), key)[place // 32]
        out[i] = -1 if word >> place % 32 & 1 else 1
    return out


def hadamard(t: np.ndarray) -> np.ndarray:
    """H t: sums and differences of neighbours, then of pairs, of quadruples, ..."""
    h = 1
    while h < len(t):
        pairs = t.reshape(-1, 2, h)
        t = np.stack((pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]), axis=1).reshape(-1)
        h *= 2
    return t


def rotate(y: np.ndarray, block: int, sign: np.ndarray) -> np.ndarray:
    """R y."""
    z = np.empty(len(y), F)
    for p in parts(len(y), block):
        z[p] = hadamard(y[p] * (sign[p] * F(1 / np.sqrt(p.stop - p.start))))
    return z


def rotate_back(z: np.ndarray, block: int, sign: np.ndarray) -> np.ndarray:
    """R^T z."""
    y = np.empty(len(z), F)
    for p in parts(len(z), block):
        y[p] = hadamard(z[p] * F(1 / np.sqrt(p.stop - p.start))) * sign[p]
    return y
