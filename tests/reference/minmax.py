"""MinMax: each block's elements, rounded to one of 2^bits equal levels from its least to its greatest."""

from __future__ import annotations

import numpy as np

from .codes import pack_bits, unpack_bits
from .philox import dithers

F = np.float32


def quantise(block: np.ndarray, top: int, u: np.ndarray | None) -> tuple[F, F, np.ndarray]:
    """(low, high, levels) of one block; ``u``: its dithers, or None for rounding to nearest (halves to even)."""
    low, high = block.min() + F(0), block.max() + F(0)
    extent = F(high - low)
    if extent < F(2.0**-100):
        return low, low, np.zeros(len(block), np.int64)
    inverse = F(top) / extent
    if F(extent * inverse) < F(top):
        inverse = np.nextafter(inverse, F(np.inf))
    t = (block - low) * inverse
    if u is None:
        return low, high, np.minimum(np.rint(t), top).astype(np.int64)
    eps = F(F(max(-low, high) * inverse) * F(2.0**-23)) + F(top * 2.0**-21)
    eps = min(eps, F(0.5))
    return low, high, np.minimum(np.floor(t + np.clip(u, eps, F(1) - eps)), top).astype(np.int64)


def encode(y: np.ndarray, bits: int, block: int, gain: float, draw: tuple[int, int, int, int] | None) -> bytes:
    """(low, high) (fp32) of all blocks, then levels of ``bits`` bits; ``draw``: (key, step, rank, offset) or None."""
    u = None if draw is None else dithers(*draw, len(y))
    ends, levels = [], []
    for start in range(0, len(y), block):
        cut = slice(start, start + block)
        low, high, q = quantise(y[cut], 2**bits - 1, None if u is None else u[cut])
        ends += [low * F(gain), high * F(gain)]
        levels.append(q)
    return np.array(ends, "<f4").tobytes() + pack_bits(np.concatenate(levels), bits)


def decode(section: bytes, numel: int, bits: int, block: int) -> np.ndarray:
    """low + level * unit; the top level is high itself."""
    blocks, top = -(-numel // block), 2**bits - 1
    low, high = np.frombuffer(section, "<f4", 2 * blocks).reshape(-1, 2).T
    q = unpack_bits(section[8 * blocks :], bits, numel)
    low, high, unit = (np.repeat(part, block)[:numel] for part in (low, high, (high - low) / F(top)))
    return np.where(q == top, high, low + q.astype(F) * unit)
