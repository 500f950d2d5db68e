"""RandK: k values at places that everybody can compute, so no place is sent.

The places are what a keyed permutation of [0, d) makes of 0 .. k-1. The permutation is a Feistel network of six rounds
on an even number of bits; where its result falls outside [0, d) it is applied again, until it falls inside.
"""

from __future__ import annotations

import numpy as np

from .philox import MASK, philox


def mix(h: int) -> int:
    """MurmurHash3's finaliser: every input bit moves every output bit."""
    h ^= h >> 16
    h = h * 0x85EBCA6B & MASK
    h ^= h >> 13
    h = h * 0xC2B2AE35 & MASK
    return h ^ h >> 16


def indices(key: int, numel: int, k: int, offset: int, step: int) -> list[int]:
    """Where element 0 .. k-1 of the payload belongs. The rank has no part in it."""
    half = (max(8, (numel - 1).bit_length()) + 1) // 2
    low = (1 << half) - 1
    words = [w for c in (0, 1) for w in philox((c, step & MASK, offset & MASK, 1), key)][:6]
    places: list[int] = []
    for m in range(k):
        while True:
            left, right = m >> half, m & low
            for word in words:
                left, right = right, left ^ (mix(right ^ word) & low)
            m = left << half | right
            if m < numel:
                break
        places.append(m)
    return places


def encode(y: np.ndarray, k: int, gain: float, key: int, offset: int, step: int) -> bytes:
    """The k values, times d/k in the unbiased form."""
    return (y[indices(key, len(y), k, offset, step)] * np.float32(gain)).astype("<f4").tobytes()


def decode(section: bytes, numel: int, k: int, key: int, offset: int, step: int) -> np.ndarray:
    """Zeros, with the values put back."""
    x = np.zeros(numel, np.float32)
    x[indices(key, numel, k, offset, step)] = np.frombuffer(section, "<f4", k)
    return x
