"""TernGrad: each block's elements become -1, 0 or 1 times a size; five of them are one number of base three."""

from __future__ import annotations

import numpy as np

from .philox import dithers
from .sums import tree

F = np.float32


def quantise(block: np.ndarray, clip: float | None, u: np.ndarray) -> tuple[F, np.ndarray]:
    """(size, -1 or 0 or 1) of one block."""
    size = np.abs(block).max()
    if clip is not None:
        total = tree(block * block)
        if total >= F(2.0**-100):
            size = min(size, F(clip) * np.sqrt(total / F(len(block))))
    if size < F(2.0**-100):
        return F(0), np.zeros(len(block), np.int64)
    return size, np.clip(np.floor(block * (F(1) / size) + u), -1, 1).astype(np.int64)


def pack(digits: list[int]) -> bytes:
    """Element i goes to byte i % 16 of its group of 80, times 3 to the power i // 16."""
    stream = b""
    for start in range(0, len(digits), 80):
        group = digits[start : start + 80]
        numbers = [0] * min(16, len(group))
        for i, digit in enumerate(group):
            numbers[i % 16] += digit * 3 ** (i // 16)
        stream += bytes(numbers)
    return stream


def unpack(stream: bytes, numel: int) -> list[int]:
    """Digit i // 16 of byte i % 16 of the group."""
    return [stream[j // 80 * 16 + j % 16] // 3 ** (j % 80 // 16) % 3 for j in range(numel)]


def encode(y: np.ndarray, clip: float | None, block: int, gain: float, draw: tuple[int, int, int, int]) -> bytes:
    """Sizes (fp32) of all blocks, then digits q + 1; ``draw``: (key, step, rank, offset)."""
    u = dithers(*draw, len(y))
    sizes, digits = [], []
    for start in range(0, len(y), block):
        cut = slice(start, start + block)
        size, q = quantise(y[cut], clip, u[cut])
        sizes.append(size * F(gain))
        digits += (q + 1).tolist()
    return np.array(sizes, "<f4").tobytes() + pack(digits)


def decode(section: bytes, numel: int, block: int) -> np.ndarray:
    """q * size."""
    blocks = -(-numel // block)
    sizes = np.repeat(np.frombuffer(section, "<f4", blocks), block)[:numel]
    return (np.array(unpack(section[4 * blocks :], numel)) - 1).astype(F) * sizes
