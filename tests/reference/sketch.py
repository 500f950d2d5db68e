"""Sketches: y = R x has fewer numbers than x, and R^T y is x on average over the random R.

Count: R has one +-1 per column, in a random row. Gaussian: R has normal numbers over sqrt s, made from 16 random bits
each: 65,536 quantiles of the normal distribution, scaled to variance one. All ranks draw the same R.
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri

from .philox import MASK, philox
from .sums import tree

F = np.float32


def places(key: int, step: int, offset: int, numel: int, s: int) -> tuple[list[int], list[int]]:
    """The row and the sign in each column."""
    row, sign = [], []
    for j in range(offset, offset + numel):
        chunk, place = divmod(j, 64)
        word = philox((chunk * 16 + place % 16 & MASK, step & MASK, 0, 3), key)[place // 16]
        row.append((word >> 1) * s >> 31)
        sign.append(-1 if word & 1 else 1)
    return row, sign


def count_encode(y: np.ndarray, s: int, key: int, step: int, offset: int) -> bytes:
    """Every element is added to its sum, in order."""
    sums = np.zeros(s, F)
    for value, r, sign in zip(y, *places(key, step, offset, len(y), s), strict=True):
        sums[r] = sums[r] + F(sign) * value
    return sums.astype("<f4").tobytes()


def count_decode(section: bytes, numel: int, s: int, key: int, step: int, offset: int) -> np.ndarray:
    """Every element is its sum, with its sign."""
    sums = np.frombuffer(section, "<f4", s)
    row, sign = places(key, step, offset, numel, s)
    return np.array([F(g) * sums[r] for r, g in zip(row, sign, strict=True)], F)


def quantiles() -> np.ndarray:
    """The normal numbers: quantiles rounded to multiples of 2^-14, over their root mean square."""
    q = np.rint(ndtri((np.arange(65536) + 0.5) / 65536) * 2**14)
    return (q / np.sqrt(np.square(q).sum() / 65536)).astype(F)


def matrix(key: int, step: int, offset: int, numel: int, s: int, table: np.ndarray) -> np.ndarray:
    """[s, numel]: the dithers of rounding (see philox.py) from stream 4, row i in the place of the rank."""
    out = np.empty((s, numel), F)
    for i in range(s):
        for e in range(numel):
            superblock, place = divmod(offset + e, 128)
            lane, vector = place % 16, place // 16
            word = philox((superblock * 16 + lane & MASK, step & MASK, i, 4), key)[vector // 2]
            out[i, e] = table[word >> 16 if vector % 2 else word & 0xFFFF]
    return out


def gauss_encode(y: np.ndarray, t: np.ndarray) -> bytes:
    """R y: products, summed by the tree."""
    c = F(1 / np.sqrt(len(t)))
    return np.array([tree(line * y) * c for line in t], "<f4").tobytes()


def gauss_decode(section: bytes, t: np.ndarray) -> np.ndarray:
    """R^T y, row after row."""
    total = np.zeros(t.shape[1], F)
    for line, value in zip(t, np.frombuffer(section, "<f4"), strict=True):
        total = total + line * value
    return total * F(1 / np.sqrt(len(t)))
