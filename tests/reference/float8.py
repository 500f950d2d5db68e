"""Eight-bit floating point: every number of the type is written down, and the nearest one taken, ties to even."""

from __future__ import annotations

from math import ldexp

import numpy as np

F = np.float32


def numbers(e5m2: bool) -> np.ndarray:
    """The finite non-negative numbers of the type, in the order of their codes 0, 1, 2, ..."""
    exponent_bits, mantissa_bits = (5, 2) if e5m2 else (4, 3)
    bias, top = 2 ** (exponent_bits - 1) - 1, 57344.0 if e5m2 else 448.0
    found: list[float] = []
    for code in range(128):
        e, m = divmod(code, 2**mantissa_bits)
        found.append(ldexp(m if e == 0 else m + 2**mantissa_bits, max(e, 1) - bias - mantissa_bits))
    return np.array([v for v in found if v <= top])


def encode(y: np.ndarray, e5m2: bool, block: int) -> bytes:
    """Scales (fp32) of all blocks, then a byte per element: the code of the number, and 128 for a minus sign."""
    known = numbers(e5m2)
    top = F(known[-1])
    steps, codes = [], []
    for start in range(0, len(y), block):
        part = y[start : start + block]
        norm = np.abs(part).max()
        used = norm >= F(2.0**-100)
        steps.append(norm / top if used else F(0))
        t = np.abs(part * (top / norm)).astype(np.float64) if used else np.zeros(len(part))
        distance = np.abs(t[:, None] - known)
        distance[:, 1::2] *= 1 + 1e-15  # a tie goes to the even code
        codes += (distance.argmin(1) + 128 * np.signbit(part)).tolist()
    return np.array(steps, "<f4").tobytes() + bytes(codes)


def decode(section: bytes, numel: int, e5m2: bool, block: int) -> np.ndarray:
    """plus or minus the code's number times the block's scale."""
    blocks = -(-numel // block)
    steps = np.repeat(np.frombuffer(section, "<f4", blocks), block)[:numel]
    codes = np.frombuffer(section[4 * blocks :], np.uint8, numel)
    size = numbers(e5m2)[codes & 127].astype(F) * steps
    return np.where(codes >= 128, -size, size)
