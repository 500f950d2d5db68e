"""Natural dithering: each element becomes 0 or the block's norm times 2^(i-s), i = 1..s, one of the two around it."""

from __future__ import annotations

from math import floor, frexp

import numpy as np

from .codes import pack_bits, unpack_bits
from .philox import dithers
from .sums import tree

F = np.float32


def level(p: np.float32, u: float, s: int) -> int:
    """The level of p = 2^(s-1) |y|/N: linear from 0 to 1, then from each power of two to the next."""
    if p < 1:
        return floor(float(p + F(1)) - 1 + u)
    mantissa, e = frexp(float(p))  # p = mantissa * 2^e, mantissa in [1/2, 1)
    return min(e + floor(2 * mantissa - 1 + u), s)


def encode(y: np.ndarray, bits: int, norm2: bool, block: int, gain: float, draw: tuple[int, int, int, int]) -> bytes:
    """Norms times gain (fp32) of all blocks, then codes +-i + s of ``bits`` bits; draw: (key, step, rank, offset)."""
    s = 2 ** (bits - 1) - 1
    u = dithers(*draw, len(y))
    steps, codes = [], []
    for start in range(0, len(y), block):
        part, noise = y[start : start + block], u[start : start + block]
        norm = np.sqrt(tree(part * part)) if norm2 else np.abs(part).max()
        used = norm >= F(2.0**-100)
        steps.append(norm * F(gain) if used else F(0))
        p = np.abs(part * (F(1) / norm)) * F(2.0 ** (s - 1)) if used else np.zeros_like(part)
        codes += [s + (-1 if a < 0 else 1) * level(b, float(c), s) for a, b, c in zip(part, p, noise, strict=True)]
    return np.array(steps, "<f4").tobytes() + pack_bits(np.array(codes, np.int64), bits)


def decode(section: bytes, numel: int, bits: int, block: int) -> np.ndarray:
    """0, or plus or minus step * 2^(i-s)."""
    s = 2 ** (bits - 1) - 1
    blocks = -(-numel // block)
    steps = np.repeat(np.frombuffer(section, "<f4", blocks), block)[:numel]
    q = unpack_bits(section[4 * blocks :], bits, numel) - s
    size = steps * np.exp2(np.abs(q) - s).astype(F)
    return np.where(q == 0, F(0), np.where(q < 0, -size, size))
