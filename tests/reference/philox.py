"""Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011) on Python integers, and the dithers that quantisers draw.

Counter and key go in, four 32-bit words come out. Element j of a parameter takes its 16-bit dither from the draw of
counter (16*sb + l, step, rank, 0), where sb = j // 128 is its superblock and l = j % 16 its lane: the eight vectors of
sixteen lanes in a superblock take the low and the high halves of the four words in turn.
"""

from __future__ import annotations

import numpy as np

MASK = 0xFFFFFFFF


def philox(counter: tuple[int, int, int, int], key: int) -> tuple[int, int, int, int]:
    """Ten rounds: two wide multiplications, exclusive or with the key words, which grow by a constant each round."""
    c0, c1, c2, c3 = counter
    k0, k1 = key & MASK, (key >> 32) & MASK
    for _ in range(10):
        wide0, wide1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (wide1 >> 32) ^ c1 ^ k0, wide1 & MASK, (wide0 >> 32) ^ c3 ^ k1, wide0 & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


def dithers(key: int, step: int, rank: int, offset: int, numel: int) -> np.ndarray:
    """U_j = (u_j + 1/2) / 65536 in fp32, for elements offset .. offset+numel-1 of the parameter with that key."""
    out = np.empty(numel, np.float32)
    drawn: dict[int, tuple[int, ...]] = {}
    for i in range(numel):
        superblock, place = divmod(offset + i, 128)
        lane, vector = place % 16, place // 16
        counter = superblock * 16 + lane
        if counter not in drawn:
            drawn[counter] = philox((counter, step & MASK, rank & MASK, 0), key)
        word = drawn[counter][vector // 2]
        out[i] = ((word >> 16 if vector % 2 else word & 0xFFFF) + 0.5) / 65536
    return out
