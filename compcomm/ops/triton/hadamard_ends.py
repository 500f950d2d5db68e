"""What a row has after its last whole tile of 4096: blocks of ``block``, then of descending sizes, in one program."""

from __future__ import annotations

import triton
import triton.language as tl

from .butterflies import (
    flag_all,
    inside_blocks,
    is_small,
    log2,
    put_numbers,
    root,
    sign_words,
    signed,
    size_bits,
    take_numbers,
    write,
)
from .common import load_y, row_of, store


@triton.jit
def _end_logs(i, end, BLOCK: tl.constexpr):
    """log2 of the size of the block of element i of the last ``end`` of a row."""
    return log2(tl.minimum(tl.maximum(i ^ end, 1), BLOCK))


@triton.jit
def _end_fits(y, i, end, BLOCK: tl.constexpr, TILE: tl.constexpr):
    """Where an element's block has no number of 2^64 or more."""
    most = size_bits(y)
    if tl.max(most, axis=0) >= 0x5F800000:
        size = most
        logs = _end_logs(i, end, BLOCK)
        for s in tl.static_range(12):
            if 2**s < BLOCK:
                own = logs == s
                most = tl.where(own, tl.max(tl.where(own, size, 0), axis=0), most)
        if BLOCK < TILE:
            wide = tl.max(tl.reshape(size, [TILE // BLOCK, BLOCK]), axis=1, keep_dims=True)
            wide = tl.reshape(tl.broadcast_to(wide, [TILE // BLOCK, BLOCK]), [TILE])
            most = tl.where(i // BLOCK < end // BLOCK, wide, most)
    return is_small(most)


@triton.jit
def _end_transform(t, end, BLOCK: tl.constexpr, TILE: tl.constexpr):
    for s in tl.static_range(12):
        if 2**s < BLOCK:
            t = inside_blocks(t, 0, end, 2**s, 1)
    return t


@triton.jit(do_not_specialize=["step"])
def ends_forward(
    x, add, z, table, tiles, status, decay, add_scale, step,
    HAS_ADD: tl.constexpr, WORDS: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """What a row has after its last whole tile: blocks of descending sizes."""
    _, tile, x_at, add_at, numel, wire_at, offset, key, _, entry = row_of(table, tiles)
    first = tile * TILE
    end = (numel - first).to(tl.int32)
    i = tl.arange(0, TILE)
    mask = i < end
    y, bad, alive = load_y(
        x, add, x_at + first, tl.where(add_at < 0, -1, add_at + first), i, mask, decay, add_scale, True, HAS_ADD
    )
    store(x + x_at + first + i, y, mask)
    fits = _end_fits(y, i, end, BLOCK, TILE)
    flag_all(status, entry, tl.sum((bad | (fits == 0)).to(tl.int32) * 65536 + alive.to(tl.int32), axis=0))
    words = sign_words(offset + first + tl.arange(0, TILE // 32) * 32, step, key, ALIGNED)
    t = tl.where(fits, signed(y * root(_end_logs(i, end, BLOCK)), i, words), 0.0)
    put_numbers(z, wire_at + first * 4, i, _end_transform(t, end, BLOCK, TILE), mask, WORDS)


@triton.jit(do_not_specialize=["step"])
def ends_inverse(
    z, table, tiles, skip, out, scale, step,
    ACCUMULATE: tl.constexpr, WORDS: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    _, tile, x_at, _, numel, wire_at, offset, key, _, entry = row_of(table, tiles)
    first = tile * TILE
    end = (numel - first).to(tl.int32)
    i = tl.arange(0, TILE)
    mask = i < end
    if tl.load(skip + entry) == 0:
        t = take_numbers(z, wire_at + first * 4, i, mask, WORDS) * root(_end_logs(i, end, BLOCK))
        t = _end_transform(t, end, BLOCK, TILE)
        t = signed(t, i, sign_words(offset + first + tl.arange(0, TILE // 32) * 32, step, key, ALIGNED))
        write(out, x_at + first, i, t, mask, scale, ACCUMULATE)
    elif ACCUMULATE == 0:
        store(out + x_at + first + i, tl.zeros([TILE], tl.float32), mask)
