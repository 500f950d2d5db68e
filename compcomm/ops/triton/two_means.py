"""Two means: one bit per element and the mean of each part. Formulas and layout: ``ops/reference/two_means.py``."""

from __future__ import annotations

import triton
import triton.language as tl

from ..reference.two_means import section
from . import work
from .blocks import pieces
from .common import (
    finish,
    finite,
    flag,
    fold_lanes,
    load_y,
    put32,
    put_columns,
    room_for,
    row_of,
    store,
    take_code,
    take_f32,
)
from .launch import launch
from .registry import kernel

ENCODE, DECODE, PIECE = 4096, 2048, 2048  # elements to a program, about, and at a time


@triton.jit
def _encode(
    x, add, wire, table, tiles, status, decay, add_scale,
    HAS_ADD: tl.constexpr, WORDS: tl.constexpr, NB: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    _, tile, x_at, add_at, numel, wire_at, _, _, _, entry = row_of(table, tiles)
    first = tile * (NB * BLOCK)
    left = numel - first
    x_from, add_from = x_at + first, tl.where(add_at < 0, -1, add_at + first)
    b = tl.arange(0, NB)
    below = tl.zeros([NB, 16], tl.float32)
    above = tl.zeros([NB, 16], tl.float32)
    count = tl.zeros([NB, 16], tl.int32)
    lane = b[:, None] * BLOCK + tl.arange(0, 16)[None, :]
    for r in range(BLOCK // 16):
        i = lane + r * 16
        y, _bad, _alive = load_y(x, add, x_from, add_from, i, i < left, decay, add_scale, True, HAS_ADD)
        below += tl.where(y < 0, y, 0.0)
        above += tl.where(y < 0, 0.0, y)
        count += (y < 0).to(tl.int32)
    low, high, negative = fold_lanes(below), fold_lanes(above), tl.sum(count, axis=1)
    others = tl.minimum(tl.maximum(left - b * BLOCK, 0), BLOCK).to(tl.int32) - negative
    good = finite(low) & finite(high)
    low = tl.where(good & (negative > 0), tl.div_rn(low, tl.maximum(negative, 1).to(tl.float32)), 0.0)
    high = tl.where(good & (others > 0), tl.div_rn(high, tl.maximum(others, 1).to(tl.float32)), 0.0)
    used = b * BLOCK < left
    means_at = wire_at + (tile * NB + b) * 8
    put32(wire, means_at, low, used, WORDS)
    put32(wire, means_at + 4, high, used, WORDS)
    flag(status, 0, used & (good == 0))

    tl.debug_barrier()  # all warps have read x
    bits_at = wire_at + (numel + BLOCK - 1) // BLOCK * 8 + first // 8
    room = room_for(first, numel, 1, NB, BLOCK)
    for c0 in range(0, BLOCK, C):
        c = c0 + tl.arange(0, C)[None, :]
        i = b[:, None] * BLOCK + c
        mask = (c < BLOCK) & (i < left)
        y, bad, alive = load_y(x, add, x_from, add_from, i, mask, decay, add_scale, True, HAS_ADD)
        store(x + x_from + i, y - tl.where(y < 0, low[:, None], high[:, None]), mask)
        put_columns(wire, bits_at, (y < 0).to(tl.int32), c0, room, 1, BLOCK)
        flag(status, 0, bad)
        flag(status, 1 + entry, alive)


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
    means_at = wire_at + (tile * NB + b) * 8
    bits_at = wire_at + (numel + BLOCK - 1) // BLOCK * 8 + first // 8
    skipped = tl.load(skip + entry) != 0
    for c0 in range(0, BLOCK, C):
        c = c0 + tl.arange(0, C)[None, :]
        i = b * BLOCK + c
        mask = (c < BLOCK) & (i < left)
        total = tl.zeros([NB, C], tl.float32)
        if skipped == 0:
            message = wires
            for m in range(messages):
                low = take_f32(message, means_at, used, WORDS)
                high = take_f32(message, means_at + 4, used, WORDS)
                v = tl.where(take_code(message, bits_at, i, mask, 1) != 0, low, high)
                total = tl.where(m == 0, v, total + v)
                message += stride
            finish(out, x_at + first, i, mask, total, scale, ACCUMULATE)
        elif ACCUMULATE == 0:
            store(out + x_at + first + i, total, mask)


@kernel("two_means_encode")
def two_means_encode(x, add, wire, table, status, decay, add_scale, block):
    work.check_encode("two_means_encode", x, add, wire, table, status, lambda row: section(row.numel, block), block)
    shape = pieces(block, ENCODE, PIECE)
    w = work.tiles(table, shape.tile, wire.device)
    launch(
        _encode, w.programs, x, add, wire, w.table, w.tiles, status, decay, add_scale,
        HAS_ADD=add is not None, WORDS=work.words(wire), NB=shape.nb, C=shape.chunk, BLOCK=block,
    )  # fmt: skip


@kernel("two_means_decode")
def two_means_decode(wires, table, skip, out, scale, accumulate, block):
    work.check_decode("two_means_decode", wires, table, skip, out, lambda row: section(row.numel, block), block)
    shape = pieces(block, DECODE, PIECE)
    w = work.tiles(table, shape.tile, out.device, decoding=True)
    launch(
        _decode, w.programs, wires, wires.shape[0], wires.stride(0), w.table, w.tiles, skip, out, scale,
        ACCUMULATE=accumulate, WORDS=work.words(wires), NB=shape.nb, C=shape.chunk, BLOCK=block,
    )  # fmt: skip
