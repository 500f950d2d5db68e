"""Codebook quantisers: the nearest level of y/sigma, times a scale per block."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from .codes import pack_bits, padded, unpack_bits
from .philox import MASK, philox
from .sums import tree

F = np.float32


def window(n: int, bits: int, part: int, number: int, step: int, key: int) -> list[int]:
    """The elements of a block of n that take one bit more, in order: cyclic, from a start that all ranks draw."""
    if not part:
        return []
    h = (n * part + 32768) // 65536
    h = max(h, 1) if bits == 0 else h
    start = philox((number & MASK, step & MASK, 0, 5), key)[0] * n // 2**32
    return [(start + i) % n for i in range(h)]


def nearest(size: F, half: np.ndarray) -> int:
    """The positive level nearest to |t|: as many as there are midpoints below."""
    return int(sum((a + b) / F(2) < size for a, b in pairwise(half)))


def power(y: np.ndarray) -> F | None:
    """What y is multiplied by before it is squared: one, or the power of two that brings its largest element near one;
    None where there is nothing to send."""
    with np.errstate(all="ignore"):
        squares = tree(y * y)
    if F(2.0**-80) <= squares < np.inf:
        return F(1)
    largest = np.abs(y).max()
    return None if largest < F(2.0**-100) else F(2.0 ** max(-126, -int(np.floor(np.log2(float(largest))))))


def block_codes(
    y: np.ndarray, books: list[np.ndarray], bits: int, chosen: list[int], dot: bool
) -> tuple[F, np.ndarray, np.ndarray]:
    """(S, codes, levels) of one block. ``books``: half codebooks of ``bits`` and bits + 1 bits."""
    n = len(y)
    p = power(y)
    scaled = y * (F(1) if p is None else p)
    t = np.zeros(n, F) if p is None else np.abs(scaled * (F(1) / np.sqrt(tree(scaled * scaled) / F(n))))
    codes, c = np.zeros(n, np.int64), np.zeros(n, F)
    for j in range(n):
        half = books[j in chosen]
        if len(half):
            i, m = nearest(t[j], half), len(half)
            codes[j] = m - 1 - i if y[j] < 0 else m + i
            c[j] = -half[i] if y[j] < 0 else half[i]
    product = tree(np.abs(c) * np.abs(scaled))
    with np.errstate(all="ignore"):
        s = (tree(scaled * scaled) / product if product > 0 else F(0)) if dot else product / tree(c * c)
    return F(0) if p is None else s / p, codes, c


def encode(
    y: np.ndarray, books: list[np.ndarray], bits: int, part: int, dot: bool, block: int, place: tuple[int, int, int]
) -> bytes:
    """Scales (fp32), leading bits of all codes, last bits of each block's window; place: (key, step, offset)."""
    key, step, offset = place
    scales, leading, last = [], [], b""
    for start in range(0, len(y), block):
        part_y = y[start : start + block]
        chosen = window(len(part_y), bits, part, (offset + start) // block, step, key)
        s, codes, _ = block_codes(part_y, books, bits, chosen, dot)
        scales.append(s)
        if chosen:
            last += pack_bits(codes[chosen] & 1, 1)
            codes[chosen] >>= 1
        leading.append(codes)
    stream = pack_bits(np.concatenate(leading), bits) if bits else b""
    return padded(np.array(scales, "<f4").tobytes() + stream + last)


def decode(
    section: bytes, numel: int, books: list[np.ndarray], bits: int, part: int, block: int, place: tuple[int, int, int]
) -> np.ndarray:
    """S times the level."""
    key, step, offset = place
    blocks = -(-numel // block)
    scales = np.frombuffer(section, "<f4", blocks)
    at = 4 * blocks
    codes = unpack_bits(section[at:], bits, numel) if bits else np.zeros(numel, np.int64)
    at += -(-numel * bits // 8)
    value = np.zeros(numel, F)
    for b in range(blocks):
        n = min(block, numel - b * block)
        chosen = window(n, bits, part, offset // block + b, step, key)
        last = unpack_bits(section[at : at + (len(chosen) + 7) // 8], 1, len(chosen))
        at += (len(chosen) + 7) // 8
        for j in range(n):
            code = int(codes[b * block + j])
            if j in chosen:
                code = 2 * code + int(last[chosen.index(j)])
            half = books[j in chosen]
            if len(half):
                value[b * block + j] = scales[b] * np.concatenate((-half[::-1], half))[code]
    return value
