"""TopK: the k largest magnitudes; of equals, the one that comes first."""

from __future__ import annotations

import numpy as np

from .codes import padded

BLOCK = 65536


def select(y: np.ndarray, k: int) -> list[int]:
    """The kept indices, ascending. Python's sort is stable, so equal magnitudes stay in index order."""
    by_size = sorted(range(len(y)), key=lambda j: -abs(float(y[j])))
    return sorted(by_size[:k])


def encode(y: np.ndarray, k: int) -> bytes:
    """Counts per block of 65,536 (u32), offsets inside the block (u16, padded to four bytes), values (fp32)."""
    kept = select(y, k)
    counts = [sum(j // BLOCK == b for j in kept) for b in range(-(-len(y) // BLOCK))]
    offsets = np.array([j % BLOCK for j in kept], "<u2").tobytes()
    return np.array(counts, "<u4").tobytes() + padded(offsets) + y[kept].astype("<f4").tobytes()


def decode(section: bytes, numel: int, k: int) -> np.ndarray:
    """Zeros, with the values put where the counts and offsets say."""
    blocks = -(-numel // BLOCK)
    counts = np.frombuffer(section, "<u4", blocks)
    sent = int(counts.sum())  # k is the capacity
    offsets = np.frombuffer(section, "<u2", sent, 4 * blocks)
    values = np.frombuffer(section, "<f4", sent, 4 * blocks + (2 * k + 3) // 4 * 4)
    block_of = [b for b in range(blocks) for _ in range(counts[b])]
    x = np.zeros(numel, np.float32)
    for b, offset, value in zip(block_of, offsets, values, strict=True):
        x[b * BLOCK + int(offset)] = value
    return x
