"""Cast: fp32 rounded to 16 bits, to nearest, halves to even."""

from __future__ import annotations

import numpy as np


def encode(y: np.ndarray, half: bool) -> bytes:
    """bfloat16 keeps the upper 16 bits of an fp32 number; float16 is IEEE's own. Values must fit."""
    if half:
        return y.astype("<f2").tobytes()
    bits = y.view(np.uint32).astype(np.uint64)
    to_even = (bits >> np.uint64(16)) & np.uint64(1)
    return ((bits + np.uint64(0x7FFF) + to_even) >> np.uint64(16)).astype("<u2").tobytes()


def decode(section: bytes, numel: int, half: bool) -> np.ndarray:
    """Back to fp32, exactly."""
    if half:
        return np.frombuffer(section, "<f2", numel).astype(np.float32)
    return (np.frombuffer(section, "<u2", numel).astype(np.uint32) << np.uint32(16)).view(np.float32)
