"""Little bit streams: element j of a stream of b-bit codes is bits [j*b, (j+1)*b), low bit of byte 0 first."""

from __future__ import annotations

import numpy as np


def pack_bits(codes: np.ndarray, bits: int) -> bytes:
    """The codes as one large number, element 0 at its low end."""
    number = 0
    for j, code in enumerate(codes.tolist()):
        number |= int(code) << (j * bits)
    return number.to_bytes(-(-len(codes) * bits // 8), "little")


def unpack_bits(stream: bytes, bits: int, numel: int) -> np.ndarray:
    """The first ``numel`` codes of a stream."""
    number = int.from_bytes(stream, "little")
    return np.array([(number >> (j * bits)) & ((1 << bits) - 1) for j in range(numel)], np.int64)


def padded(section: bytes) -> bytes:
    """A section, up to the next multiple of four bytes."""
    return section + bytes(-len(section) % 4)
