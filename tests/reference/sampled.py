"""Sampled top-k, as published: mask, count, adapt. Only what exceeds k is cut off by size and not by index."""

from __future__ import annotations

from math import ceil

import numpy as np

from .philox import MASK, philox
from .topk import select

BLOCK = 65536


def kept(y: np.ndarray, k: int, key: int, offset: int, step: int, rank: int) -> list[int]:
    """The indices that are sent, ascending."""
    n = len(y)
    size = np.abs(y)
    samples = max(ceil(n / 100), ceil(2 * n / k))
    if samples >= n or k == n:
        return select(y, k)
    stride = ceil(n / samples / 32) * 32 + 1
    while n // stride < samples:
        stride -= 8
    start = philox((offset & MASK, step & MASK, rank & MASK, 4), key)[0] * stride >> 32
    top = ceil(samples * k / n)
    threshold = np.float32(np.sort(size[start::stride])[-top])
    for _ in range(11):
        chosen = np.flatnonzero(size >= threshold)
        if len(chosen) > k:
            return [int(chosen[i]) for i in select(y[chosen], k)]
        if 5 * len(chosen) >= 4 * k:  # 0.8 k, without rounding
            return [int(i) for i in chosen]
        threshold = threshold * np.float32(0.8)
    return select(y, k)


def encode(y: np.ndarray, k: int, chosen: list[int]) -> bytes:
    """As in exact top-k, with room for k and zero bytes where fewer are sent."""
    counts = [sum(j // BLOCK == b for j in chosen) for b in range(-(-len(y) // BLOCK))]
    offsets = np.array([j % BLOCK for j in chosen], "<u2").tobytes().ljust((2 * k + 3) // 4 * 4, b"\0")
    return np.array(counts, "<u4").tobytes() + offsets + y[chosen].astype("<f4").tobytes().ljust(4 * k, b"\0")
