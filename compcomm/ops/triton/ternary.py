"""Ternary: digits of base three and one size per block. Formulas and layouts: ``ops/reference/{ternary,trits}.py``.

A program has five blocks, or a multiple, so that its digits are whole groups of 80 and, of aligned parameters, whole
superblocks of dithers. It measures its blocks as rows of a tile, then quantises in units of 640 elements (five
superblocks, eight groups), 16 lanes each: a thread makes the bytes of its lane from its own digits.
"""

from __future__ import annotations

from math import lcm

import triton
import triton.language as tl
from triton import next_power_of_2

from ..reference.ternary import section
from . import work
from .blocks import pieces
from .common import (
    finish,
    finite,
    flag,
    lane_sums,
    load_y,
    put32,
    row_of,
    store,
    take_f32,
    uniform,
)
from .launch import launch
from .registry import kernel
from .vectors import dither_eight, load_eight

ENCODE, DECODE, PIECE = 4096, 2048, 2048  # elements to a program, about, and at a time
UNIT = 640


@triton.jit(do_not_specialize=["step", "rank"])
def _encode(
    x, add, wire, table, tiles, status, decay, add_scale, gain, clip, step, rank,
    CLIP: tl.constexpr, HAS_ADD: tl.constexpr, WORDS: tl.constexpr, RUN: tl.constexpr, BLOCK: tl.constexpr,
    TILE: tl.constexpr, NB: tl.constexpr, C: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    row, tile, x_at, add_at, numel, wire_at, offset, key, _, entry = row_of(table, tiles)
    TINY: tl.constexpr = 7.888609052210118e-31
    first = tile * TILE
    left = tl.minimum(numel - first, TILE)
    x_from, add_from = x_at + first, tl.where(add_at < 0, -1, add_at + first)
    b = tl.arange(0, NB)
    size = tl.zeros([NB], tl.float32)
    for c0 in range(0, BLOCK, C):
        c = c0 + tl.arange(0, C)[None, :]
        i = b[:, None] * BLOCK + c
        y, bad, alive = load_y(x, add, x_from, add_from, i, (c < BLOCK) & (i < left), decay, add_scale, True, HAS_ADD)
        size = tl.maximum(size, tl.max(tl.abs(y), axis=1))
        flag(status, 0, bad)
        flag(status, 1 + entry, alive)
    if CLIP:
        _, squares = lane_sums(x, add, x_at, add_at, first, first + left, decay, add_scale, HAS_ADD, NB, BLOCK)
        count = tl.minimum(tl.maximum(left - b * BLOCK, 1), BLOCK).to(tl.float32)
        limit = clip * tl.sqrt_rn(tl.div_rn(squares, count))
        size = tl.where((squares >= TINY) & (limit < size), limit, size)
    factor = tl.load(gain + row)
    used = b * BLOCK < left
    good = finite(size * factor)
    flag(status, 0, used & (good == 0) & (size >= TINY))
    size = tl.where(good & (size >= TINY), size, 0.0)
    # Sizes pass from the layout of blocks to that of units through the wire.
    sizes_at = wire_at + tile * (TILE // BLOCK) * 4
    put32(wire, sizes_at + b * 4, size, used, WORDS)
    tl.debug_barrier()

    digits_at = wire_at + (numel + BLOCK - 1) // BLOCK * 4 + first // 80 * 16
    room = (left // 80 * 16 + tl.minimum(left % 80, 16) + 3) // 4 * 4
    lane = tl.arange(0, 16)[None, :]
    for u in range(0, TILE // 640, S):
        s = u + tl.arange(0, S)[:, None]
        total = tl.zeros([S, 16], tl.int32)
        for superblock in tl.static_range(5):
            begin = s * 640 + superblock * 128
            ys = load_eight(x, add, x_from, add_from, begin + lane, left, decay, add_scale, HAS_ADD)
            us = dither_eight(offset + first + begin + lane, step, rank, key, RUN)
            for v in tl.static_range(8):
                from_ = begin + v * 16
                if v == 0 or BLOCK % 128 != 0:  # else the block is that of the vector before
                    own = take_f32(wire, sizes_at + from_ // BLOCK * 4, from_ < left, WORDS)
                    inverse = tl.where(own > 0, tl.div_rn(tl.zeros_like(own) + 1.0, tl.where(own > 0, own, 1.0)), 0.0)
                    sent = own * factor
                q = tl.floor(ys[v] * inverse + uniform(us[v]))
                q = tl.minimum(tl.maximum(q, -1.0), 1.0)
                i = from_ + lane
                store(x + x_from + i, ys[v] - q * sent, i < left)
                digit = tl.where(i < left, q.to(tl.int32) + 1, 0)
                if (superblock * 8 + v) % 5 == 0:
                    total = digit
                else:
                    total += digit * (3 ** ((superblock * 8 + v) % 5))
                if (superblock * 8 + v) % 5 == 4:
                    at = (s * 8 + (superblock * 8 + v) // 5) * 16 + lane
                    tl.store(wire + digits_at + at, total.to(tl.uint8), mask=at < room)
    tl.debug_barrier()
    put32(wire, sizes_at + b * 4, size * factor, used, WORDS)


@triton.jit
def _decode(
    wires, messages, stride, table, tiles, skip, out, scale,
    ACCUMULATE: tl.constexpr, WORDS: tl.constexpr, NB: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    _, tile, x_at, _, numel, wire_at, _, _, _, entry = row_of(table, tiles)
    first = tile * (NB * BLOCK)
    left = numel - first
    b = tl.arange(0, NB)[:, None]
    used = b * BLOCK < left
    sizes_at = wire_at + (tile * NB + b) * 4
    digits_at = wire_at + (numel + BLOCK - 1) // BLOCK * 4 + first // 80 * 16
    begin = (first % 80).to(tl.int32)
    skipped = tl.load(skip + entry) != 0
    for c0 in range(0, BLOCK, C):
        c = c0 + tl.arange(0, C)[None, :]
        i = b * BLOCK + c
        mask = (c < BLOCK) & (i < left)
        total = tl.zeros([NB, C], tl.float32)
        if skipped == 0:
            e = begin + i
            at = e // 80 * 16 + e % 16
            k = e % 80 // 16
            # ceil(2^16 / 3^k): the quotient of every byte by 3^k is exact
            low = tl.where(k == 0, 65536, tl.where(k == 1, 21846, 7282))
            reciprocal = tl.where(k < 3, low, tl.where(k == 3, 2428, 810))
            message = wires
            for m in range(messages):
                size = take_f32(message, sizes_at, used, WORDS)
                byte = tl.load(message + digits_at + at, mask=mask, other=0).to(tl.int32)
                rest = (byte * reciprocal) >> 16
                digit = rest - 3 * ((rest * 21846) >> 16)
                v = (digit - 1).to(tl.float32) * size
                total = tl.where(m == 0, v, total + v)
                message += stride
            finish(out, x_at + first, i, mask, total, scale, ACCUMULATE)
        elif ACCUMULATE == 0:
            store(out + x_at + first + i, total, mask)


@kernel("ternary_encode")
def ternary_encode(x, add, wire, table, status, decay, add_scale, gain, clip, block, step, rank):
    work.check_encode("ternary_encode", x, add, wire, table, status, lambda row: section(row.numel, block), block)
    least = lcm(UNIT, block)
    tile = -(-ENCODE // least) * least
    nb = next_power_of_2(tile // block)
    w = work.tiles(table, tile, wire.device)
    launch(
        _encode, w.programs, x, add, wire, w.table, w.tiles, status, decay, add_scale, work.on(gain, wire.device),
        clip, step, rank, CLIP=clip != 0, HAS_ADD=add is not None, WORDS=work.words(wire),
        RUN=work.aligned(table, 128), BLOCK=block, TILE=tile, NB=nb,
        C=min(next_power_of_2(block), max(16, PIECE // nb)), S=8,
    )  # fmt: skip


@kernel("ternary_decode")
def ternary_decode(wires, table, skip, out, scale, accumulate, block):
    work.check_decode("ternary_decode", wires, table, skip, out, lambda row: section(row.numel, block), block)
    shape = pieces(block, DECODE, DECODE)
    w = work.tiles(table, shape.tile, out.device, decoding=True)
    launch(
        _decode, w.programs, wires, wires.shape[0], wires.stride(0), w.table, w.tiles, skip, out, scale,
        ACCUMULATE=accumulate, WORDS=work.words(wires), NB=shape.nb, C=shape.chunk, BLOCK=block,
    )  # fmt: skip
