"""Shared scale: norms, words of codes that may be summed, and the mean from sums. Formulas and layout:
``ops/reference/shared_scale.py``.

Words hold elements 16 apart, so a program treats units of lcm(8, lanes) vectors of 16: whole words and, of aligned
parameters, whole superblocks of dithers. A thread makes the words of its lane from its own codes.
"""

from __future__ import annotations

from math import lcm

import triton
import triton.language as tl
from torch import Tensor
from triton import next_power_of_2

from ..reference.rows import ceil_div
from ..reference.shared_scale import _check, lanes
from . import work
from .blocks import pieces
from .common import (
    finite,
    flag,
    lane_sums,
    load_y,
    nearest_even,
    put32,
    row_of,
    store,
    take32,
    take_f32,
    uniform,
)
from .launch import launch
from .registry import kernel
from .vectors import dither_eight, load_eight

NORMS, TILE = 4096, 2048  # elements to a program, about


@triton.jit
def _scalable(size, levels):
    top = tl.zeros_like(size) + levels
    return finite(size) & finite(top * tl.div_rn(size, top))


@triton.jit
def _norms(
    x, add, wire, table, tiles, status, decay, add_scale, levels,
    NORM2: tl.constexpr, HAS_ADD: tl.constexpr, WORDS: tl.constexpr, NB: tl.constexpr, C: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    _, tile, x_at, add_at, numel, wire_at, _, _, _, entry = row_of(table, tiles)
    first = tile * (NB * BLOCK)
    left = numel - first
    x_from, add_from = x_at + first, tl.where(add_at < 0, -1, add_at + first)
    b = tl.arange(0, NB)
    size = tl.zeros([NB], tl.float32)
    if NORM2:
        _, squares = lane_sums(x, add, x_at, add_at, first, numel, decay, add_scale, HAS_ADD, NB, BLOCK)
        size = tl.sqrt_rn(squares)
        tl.debug_barrier()  # all warps have read x
    for c0 in range(0, BLOCK, C):
        c = c0 + tl.arange(0, C)[None, :]
        i = b[:, None] * BLOCK + c
        mask = (c < BLOCK) & (i < left)
        y, bad, alive = load_y(x, add, x_from, add_from, i, mask, decay, add_scale, True, HAS_ADD)
        store(x + x_from + i, y, mask)
        if NORM2 == 0:
            size = tl.maximum(size, tl.max(tl.abs(y), axis=1))
        flag(status, 0, bad)
        flag(status, 1 + entry, alive)
    good = _scalable(size, levels)
    used = b * BLOCK < left
    put32(wire, wire_at + (tile * NB + b) * 4, tl.where(good, size, 0.0), used, WORDS)
    flag(status, 0, used & (good == 0))


@triton.jit(do_not_specialize=["step", "rank"])
def _encode(
    x, norms, words, table, tiles, levels, step, rank,
    STOCHASTIC: tl.constexpr, WORDS: tl.constexpr, RUN: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
    VECTORS: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    _, tile, x_at, norms_at, numel, words_at, offset, key, _, _ = row_of(table, tiles)
    L: tl.constexpr = 32 // WIDTH
    UNIT: tl.constexpr = 16 * VECTORS
    first = tile * (S * UNIT)
    left = numel - first
    s = tl.arange(0, S)[:, None]
    lane = tl.arange(0, 16)[None, :]
    begin_block, rest = first // BLOCK, (first % BLOCK).to(tl.int32)
    total = tl.zeros([S, 16], tl.uint32)
    for superblock in tl.static_range(VECTORS // 8):
        begin = s * UNIT + superblock * 128
        ys = load_eight(x, None, x_at + first, x_at, begin + lane, left, 1.0, 1.0, False)
        if STOCHASTIC:
            us = dither_eight(offset + first + begin + lane, step, rank, key, RUN)
        for v in tl.static_range(8):
            from_ = begin + v * 16
            if v == 0 or BLOCK % 128 != 0:  # else the block is that of the vector before
                at = norms_at + (begin_block + (rest + from_) // BLOCK) * 4
                size = take_f32(norms, at, from_ < left, WORDS)
                used = (size >= 7.888609052210118e-31) & _scalable(size, levels)
                top = tl.zeros_like(size) + levels
                level = tl.where(used, tl.div_rn(size, top), 0.0)
                inverse = tl.where(used, tl.div_rn(top, tl.where(used, size, 1.0)), 0.0)
            t = ys[v] * inverse
            if STOCHASTIC:
                q = tl.floor(t + uniform(us[v]))
            else:  # not beyond what can be rounded so
                q = nearest_even(tl.minimum(tl.maximum(t, -200.0), 200.0))
            q = tl.minimum(tl.maximum(q, -levels), levels)
            i = from_ + lane
            store(x + x_at + first + i, ys[v] - q * level, i < left)
            code = tl.where(i < left, q + levels, levels).to(tl.int32).to(tl.uint32)
            if (superblock * 8 + v) % L == 0:
                total = code
            else:
                total |= code << ((superblock * 8 + v) % L * WIDTH)
            if (superblock * 8 + v) % L == L - 1:
                group = s * (VECTORS // L) + (superblock * 8 + v) // L
                at = words_at + first // L * 4 + (group * 16 + lane) * 4
                put32(words, at, total, group * (16 * L) < left, WORDS)


@triton.jit
def _decode(
    words, norms, table, tiles, skip, out, scale, levels, shift,
    ACCUMULATE: tl.constexpr, WORDS: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    _, tile, x_at, norms_at, numel, words_at, _, _, _, entry = row_of(table, tiles)
    L: tl.constexpr = 32 // WIDTH
    first = tile * (G * 16 * L)
    left = numel - first
    g = tl.arange(0, G)[:, None]
    lane = tl.arange(0, 16)[None, :]
    begin_block, rest = first // BLOCK, (first % BLOCK).to(tl.int32)
    skipped = tl.load(skip + entry) != 0
    if skipped == 0:
        at = words_at + first // L * 4 + (g * 16 + lane) * 4
        packed = take32(words, at, g * (16 * L) < left, WORDS)
        for k in tl.static_range(L):
            from_ = (g * L + k) * 16
            at = norms_at + (begin_block + (rest + from_) // BLOCK) * 4
            size = take_f32(norms, at, from_ < left, WORDS)
            used = (size >= 7.888609052210118e-31) & _scalable(size, levels)
            level = tl.where(used, tl.div_rn(size, tl.zeros_like(size) + levels), 0.0)
            q = ((packed >> (k * WIDTH)) & ((1 << WIDTH) - 1)).to(tl.int32) - shift
            value = q.to(tl.float32) * (level * scale)  # a sum may overflow where the mean does not
            i = from_ + lane
            if ACCUMULATE:
                value = tl.load(out + x_at + first + i, mask=i < left, other=0.0).to(tl.float32) + value
            store(out + x_at + first + i, value, i < left)
    elif ACCUMULATE == 0:
        for k in tl.static_range(L):
            i = (g * L + k) * 16 + lane
            store(out + x_at + first + i, tl.zeros([G, 16], tl.float32), i < left)


@kernel("shared_norms")
def shared_norms(x, add, wire, table, status, decay, add_scale, levels, norm2, block):
    work.check_encode(
        "shared_norms", x, add, wire, table, status, lambda row: 4 * ceil_div(row.numel, block), block
    )  # fmt: skip
    shape = pieces(block, NORMS, TILE)
    w = work.tiles(table, shape.tile, wire.device)
    launch(
        _norms, w.programs, x, add, wire, w.table, w.tiles, status, decay, add_scale, float(levels),
        NORM2=norm2, HAS_ADD=add is not None, WORDS=work.words(wire), NB=shape.nb, C=shape.chunk, BLOCK=block,
    )  # fmt: skip


def _checked(op: str, table: Tensor, x: Tensor, words: Tensor, norms: Tensor, width: int, block: int) -> None:
    key = (op, x.numel(), words.numel(), norms.numel(), width, block)
    work.kept(table, key, lambda: _check(op, table.cpu(), x, words, norms, width, block))


@kernel("shared_encode")
def shared_encode(x, norms, words, table, width, levels, stochastic, block, step, rank):
    _checked("shared_encode", table, x, words, norms, width, block)
    vectors = lcm(8, lanes(width))
    s = max(8, next_power_of_2(TILE // (16 * vectors) // 2 + 1))
    w = work.tiles(table, s * 16 * vectors, words.device)
    launch(
        _encode, w.programs, x, norms, words, w.table, w.tiles, float(levels), step, rank,
        STOCHASTIC=stochastic, WORDS=work.words(words, norms), RUN=work.aligned(table, 128), BLOCK=block, WIDTH=width,
        VECTORS=vectors, S=s,
    )  # fmt: skip


@kernel("shared_decode")
def shared_decode(words, norms, table, skip, out, scale, accumulate, width, levels, block, world):
    _checked("shared_decode", table, out, words, norms, width, block)
    g = max(8, next_power_of_2(TILE // (16 * lanes(width)) // 2 + 1))
    w = work.tiles(table, g * 16 * lanes(width), out.device, decoding=True)
    launch(
        _decode, w.programs, words, norms, w.table, w.tiles, skip, out, scale, float(levels), levels * world,
        ACCUMULATE=accumulate, WORDS=work.words(words, norms), BLOCK=block, WIDTH=width, G=g,
    )  # fmt: skip
