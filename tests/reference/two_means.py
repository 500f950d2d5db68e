"""Two means: the sign of every element, and per block the mean of the negative ones and that of the others."""

from __future__ import annotations

import numpy as np

from .codes import pack_bits, unpack_bits
from .sums import tree

F = np.float32


def encode(y: np.ndarray, block: int) -> bytes:
    """Both means (fp32) of all blocks, then a bit per element, 1 for negative; zero of either sign is not."""
    means = []
    for start in range(0, len(y), block):
        part = y[start : start + block]
        for mine in (part < 0, part >= 0):
            count = int(mine.sum())
            means.append(tree(np.where(mine, part, F(0))) / F(count) if count else F(0))
    return np.array(means, "<f4").tobytes() + pack_bits((y < 0).astype(np.int64), 1)


def decode(section: bytes, numel: int, block: int) -> np.ndarray:
    """The mean that the bit chooses."""
    blocks = -(-numel // block)
    below, above = np.frombuffer(section, "<f4", 2 * blocks).reshape(-1, 2).T.repeat(block, 1)[:, :numel]
    return np.where(unpack_bits(section[8 * blocks :], 1, numel) == 1, below, above)
