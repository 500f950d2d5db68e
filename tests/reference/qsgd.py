"""QSGD: each block's elements, rounded to one of 2s+1 equal levels between -N and N, N the block's norm."""

from __future__ import annotations

import numpy as np

from .codes import pack_bits, unpack_bits
from .philox import dithers
from .sums import tree

F = np.float32


def quantise(block: np.ndarray, s: int, norm2: bool, gain: float, u: np.ndarray | None) -> tuple[F, np.ndarray]:
    """(step, levels) of one block; ``u``: its dithers, or None for rounding to nearest (halves to even)."""
    norm = np.sqrt(tree(block * block)) if norm2 else np.abs(block).max()
    if norm < F(2.0**-100):
        return F(0), np.zeros(len(block), np.int64)
    t = block * (F(s) / norm)
    q = np.rint(t) if u is None else np.floor(t + u)
    return F(norm / F(s)) * F(gain), np.clip(q, -s, s).astype(np.int64)


def encode(
    y: np.ndarray, s: int, bits: int, norm2: bool, block: int, gain: float, draw: tuple[int, int, int, int] | None
) -> bytes:
    """Steps (fp32) of all blocks, then codes q + s of ``bits`` bits; ``draw``: (key, step, rank, offset) or None."""
    u = None if draw is None else dithers(*draw, len(y))
    steps, codes = [], []
    for start in range(0, len(y), block):
        cut = slice(start, start + block)
        step, q = quantise(y[cut], s, norm2, gain, None if u is None else u[cut])
        steps.append(step)
        codes.append(q + s)
    return np.array(steps, "<f4").tobytes() + pack_bits(np.concatenate(codes), bits)


def decode(section: bytes, numel: int, s: int, bits: int, block: int) -> np.ndarray:
    """level * step."""
    blocks = -(-numel // block)
    steps = np.frombuffer(section, "<f4", blocks)
    q = unpack_bits(section[4 * blocks :], bits, numel) - s
    return q.astype(F) * np.repeat(steps, block)[:numel]
