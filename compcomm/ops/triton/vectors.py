"""Superblocks of 128 elements as eight vectors of 16 lanes: one Philox call gives a lane the dithers of all eight.

For formats whose words or bytes hold elements 16 apart: with a tile of [superblocks, 16] lanes per vector, neither
dithers nor codes ever move between threads.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .common import dither_each, load_y, philox


@triton.jit
def load_eight(x, add, x_from, add_from, i, numel, decay, add_scale, HAS_ADD: tl.constexpr):
    """y of the elements ``i``, i + 16, .., i + 112 from ``x_from`` and ``add_from`` on, below ``numel``."""
    y0, _, _ = load_y(x, add, x_from, add_from, i, i < numel, decay, add_scale, True, HAS_ADD)
    y1, _, _ = load_y(x, add, x_from, add_from, i + 16, i + 16 < numel, decay, add_scale, True, HAS_ADD)
    y2, _, _ = load_y(x, add, x_from, add_from, i + 32, i + 32 < numel, decay, add_scale, True, HAS_ADD)
    y3, _, _ = load_y(x, add, x_from, add_from, i + 48, i + 48 < numel, decay, add_scale, True, HAS_ADD)
    y4, _, _ = load_y(x, add, x_from, add_from, i + 64, i + 64 < numel, decay, add_scale, True, HAS_ADD)
    y5, _, _ = load_y(x, add, x_from, add_from, i + 80, i + 80 < numel, decay, add_scale, True, HAS_ADD)
    y6, _, _ = load_y(x, add, x_from, add_from, i + 96, i + 96 < numel, decay, add_scale, True, HAS_ADD)
    y7, _, _ = load_y(x, add, x_from, add_from, i + 112, i + 112 < numel, decay, add_scale, True, HAS_ADD)
    return y0, y1, y2, y3, y4, y5, y6, y7


@triton.jit
def dither_eight(j, step, rank, key, RUN: tl.constexpr):
    """The dithers of the elements j, j + 16, .., j + 112 (int64); ``RUN``: they are those of one superblock."""
    if RUN:
        c0 = (((j >> 7) * 16 + (j & 15)) & 0xFFFFFFFF).to(tl.uint32)
        w0, w1, w2, w3 = philox(c0, step, rank, 0, key)
        return (
            (w0 & 0xFFFF).to(tl.int32), (w0 >> 16).to(tl.int32), (w1 & 0xFFFF).to(tl.int32), (w1 >> 16).to(tl.int32),
            (w2 & 0xFFFF).to(tl.int32), (w2 >> 16).to(tl.int32), (w3 & 0xFFFF).to(tl.int32), (w3 >> 16).to(tl.int32),
        )  # fmt: skip
    else:
        vector = 16 * tl.arange(0, 8)[None, None, :]
        u = dither_each(j[:, :, None] + vector, step, rank, 0, key)
        even, odd = tl.split(tl.reshape(u, [j.shape[0], j.shape[1], 4, 2]))
        u04, u26 = tl.split(tl.reshape(even, [j.shape[0], j.shape[1], 2, 2]))
        u15, u37 = tl.split(tl.reshape(odd, [j.shape[0], j.shape[1], 2, 2]))
        u0, u4 = tl.split(u04)
        u2, u6 = tl.split(u26)
        u1, u5 = tl.split(u15)
        u3, u7 = tl.split(u37)
        return u0, u1, u2, u3, u4, u5, u6, u7
