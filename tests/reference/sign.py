"""SignScale: the sign of every element, and one magnitude per block."""

from __future__ import annotations

import numpy as np

from .codes import pack_bits, unpack_bits
from .sums import tree

F = np.float32


def encode(y: np.ndarray, scale: str, block: int) -> bytes:
    """Scales (fp32) of all blocks, then a bit per element, 1 for negative; zero of either sign counts as positive."""
    scales = []
    for start in range(0, len(y), block):
        part = y[start : start + block]
        n = F(len(part))
        one, two = tree(np.abs(part)), tree(part * part)
        scales.append({"l1": one / n, "l2": np.sqrt(two / n), "dot": two / one if one else F(0)}[scale])
    return np.array(scales, "<f4").tobytes() + pack_bits((y < 0).astype(np.int64), 1)


def decode(section: bytes, numel: int, block: int) -> np.ndarray:
    """plus or minus the block's scale."""
    blocks = -(-numel // block)
    scale = np.repeat(np.frombuffer(section, "<f4", blocks), block)[:numel]
    return np.where(unpack_bits(section[4 * blocks :], 1, numel) == 1, -scale, scale)
