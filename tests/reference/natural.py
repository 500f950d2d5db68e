"""Natural compression: every element becomes one of the two powers of two around it."""

from __future__ import annotations

from math import floor, frexp, ldexp

import numpy as np

from .codes import pack_bits, unpack_bits
from .philox import dithers

F = np.float32


def exponent(size: float, u: float) -> int:
    """The code of |y| = 2^e (1 + m): e + 127, one more where m + u reaches 1. Below 2^-126 the step is that from 0."""
    if size < 2.0**-126:
        return floor(size / 2.0**-126 + u)
    mantissa, e = frexp(size)  # size = mantissa * 2^e, mantissa in [1/2, 1)
    return e + 126 + floor(2 * mantissa - 1 + u)


def encode(y: np.ndarray, gain: float, draw: tuple[int, int, int, int]) -> bytes:
    """Exponents as bytes, then the signs; ``draw``: (key, step, rank, offset)."""
    z = y * F(gain)
    u = dithers(*draw, len(y))
    codes = [exponent(abs(float(a)), float(b)) for a, b in zip(z, u, strict=True)]
    return bytes(codes) + pack_bits(np.signbit(z).astype(np.int64), 1)


def decode(section: bytes, numel: int) -> np.ndarray:
    """plus or minus a power of two, or zero."""
    size = np.array([ldexp(1.0, c - 127) if c else 0.0 for c in section[:numel]], F)
    return np.where(unpack_bits(section[numel:], 1, numel) == 1, -size, size)
