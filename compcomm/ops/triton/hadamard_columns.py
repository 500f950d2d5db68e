"""What a block beyond 2^15 needs after its tiles of 4096: butterflies over columns, through memory once more."""

from __future__ import annotations

import triton
import triton.language as tl

from .butterflies import halves, inside_blocks, put_numbers, sign_words, signed, take_numbers, whole, write
from .common import row_of, store


@triton.jit
def _tall(t, first, end, BLOCK: tl.constexpr, ROWS: tl.constexpr, UNIT: tl.constexpr):
    """Butterflies over ROWS rows of UNIT numbers, from row ``first`` of ``end`` on; BLOCK: rows of a block."""
    for s in tl.static_range(20):
        if 2**s < ROWS and 2**s < BLOCK:
            t = inside_blocks(t, first, end, 2**s, UNIT)
    return t


@triton.jit
def _spoilt(large, base, first, end, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    """Which of the rows lie in a block with a number that is too large: [ROWS], int32."""
    r = tl.arange(0, ROWS)
    found = tl.load(large + base + first + r, mask=r < end - first, other=0)
    for s in tl.static_range(20):
        if 2**s < ROWS and 2**s < BLOCK:
            a, b = halves(found, 2**s)
            on = (first // 2 ** (s + 1) + tl.arange(0, ROWS // 2 ** (s + 1)) != end // 2 ** (s + 1))[:, None]
            found = whole(tl.where(on, a | b, a), tl.where(on, a | b, b))
    return found


@triton.jit
def columns_forward(
    z, table, tiles, bases, large,
    WORDS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The bits of a block beyond a tile's: COLUMNS columns of ROWS tiles."""
    row, place, _, _, numel, wire_at, _, _, _, _ = row_of(table, tiles)
    first = place // (TILE // COLUMNS) * ROWS
    end = numel // TILE
    i = tl.arange(0, ROWS * COLUMNS)
    r = i // COLUMNS
    mask = r < end - first
    at = wire_at + (first * TILE + place % (TILE // COLUMNS) * COLUMNS) * 4
    i = r * TILE + i % COLUMNS
    t = take_numbers(z, at, i, mask, WORDS)
    spoilt = _spoilt(large, tl.load(bases + row), first, end, BLOCK // TILE, ROWS)
    t = tl.where(tl.reshape(tl.broadcast_to(spoilt[:, None], [ROWS, COLUMNS]), [ROWS * COLUMNS]) != 0, 0.0, t)
    t = _tall(t, first, end, BLOCK // TILE, ROWS, COLUMNS)
    put_numbers(z, at, i, t, mask, WORDS)


@triton.jit(do_not_specialize=["step"])
def columns_inverse(
    partial, table, tiles, bases, skip, out, scale, step,
    ACCUMULATE: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row, place, x_at, _, numel, _, offset, key, _, entry = row_of(table, tiles)
    first = place // (TILE // COLUMNS) * ROWS
    end = numel // TILE
    i = tl.arange(0, ROWS * COLUMNS)
    r = i // COLUMNS
    mask = r < end - first
    column = place % (TILE // COLUMNS) * COLUMNS
    i = r * TILE + i % COLUMNS
    at = x_at + first * TILE + column
    if tl.load(skip + entry) == 0:
        t = tl.load(partial + (tl.load(bases + row) + first) * TILE + column + i, mask=mask, other=0.0)
        t = _tall(t, first, end, BLOCK // TILE, ROWS, COLUMNS)
        g = tl.arange(0, ROWS * COLUMNS // 32) * 32
        begin = offset + first * TILE + column + g // COLUMNS * TILE + g % COLUMNS
        t = signed(t, tl.arange(0, ROWS * COLUMNS), sign_words(begin, step, key, ALIGNED))
        write(out, at, i, t, mask, scale, ACCUMULATE)
    elif ACCUMULATE == 0:
        store(out + at + i, tl.zeros([ROWS * COLUMNS], tl.float32), mask)
