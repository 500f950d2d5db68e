"""Codebook quantisers: the nearest level of y/sigma and one scale per block. Formulas and layout:
``ops/reference/codebook.py``.

Sums go by the fixed tree, so a program passes over its blocks lane by lane: once for the squares, once for the sums
with the levels; then for the last bits of the windows, in their order, and for codes and values, as they lie. What it
reads again is in its first-level cache. Levels are found by bisection, which takes no more steps than a code has bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.codebook import section, window_length
from . import work
from .blocks import pieces
from .common import (
    finish,
    finite,
    flag,
    fold_lanes,
    load_y,
    philox,
    put32,
    put_columns,
    row_of,
    store,
    take_code,
    take_f32,
)
from .launch import launch
from .registry import kernel

ENCODE, DECODE = 4096, 2048  # elements to a program, about
PIECE = 1024  # at a time, while encoding


@triton.jit
def _search(bounds, size, STEPS: tl.constexpr):
    """How many of the 2^STEPS - 1 ascending bounds lie below."""
    index = tl.zeros(size.shape, tl.int32)
    for s in tl.static_range(STEPS):
        probe = index + (1 << (STEPS - 1 - s))
        index = tl.where(tl.load(bounds + probe - 1) < size, probe, index)
    return index


@triton.jit
def _code(bounds, size, negative, BITS: tl.constexpr):
    """The rank of the nearest level among all 2^BITS."""
    index = _search(bounds, size, BITS - 1)
    return tl.where(negative, 2 ** (BITS - 1) - 1 - index, 2 ** (BITS - 1) + index)


@triton.jit
def _nearest(book, y, size, inside, BITS: tl.constexpr, PART: tl.constexpr):
    """(code, last bit of the code with one bit more, level): of ``BITS`` bits, or of one more ``inside`` the window."""
    # The book: levels of BITS bits, levels of one more, bounds of both; without PART the first and third alone.
    LEVELS: tl.constexpr = (2**BITS if BITS else 0) + (2 * 2**BITS if PART else 0)
    FINE: tl.constexpr = LEVELS + (2 ** (BITS - 1) - 1 if BITS else 0)
    negative = y < 0
    code = tl.zeros(y.shape, tl.int32)
    last = tl.zeros(y.shape, tl.int32)
    level = tl.zeros(y.shape, tl.float32)
    if BITS:
        code = _code(book + LEVELS, size, negative, BITS)
        level = tl.load(book + code)
    if PART:
        fine = _code(book + FINE, size, negative, BITS + 1)
        level = tl.where(inside, tl.load(book + (2**BITS if BITS else 0) + fine), level)
        code = tl.where(inside, fine >> 1, code)
        last = fine & 1
    return code, last, level


@triton.jit
def _window(offset, first, b, n, key, step, part, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """The windows of blocks ``b`` (int32 [NB]) of n elements: where they begin, and their length."""
    number = (offset + first + b.to(tl.int64) * BLOCK) // BLOCK
    drawn, _w1, _w2, _w3 = philox((number & 0xFFFFFFFF).to(tl.uint32), step, 0, 5, key)
    start = ((drawn.to(tl.int64) * n.to(tl.int64)) >> 32).to(tl.int32)
    length = ((n.to(tl.int64) * part + 32768) >> 16).to(tl.int32)
    if BITS == 0:
        length = tl.maximum(length, 1)
    return start, tl.where(n > 0, length, 0)


@triton.jit
def _place(column, start, n):
    """The place of a block's elements in its window: inside below its length."""
    place = column - start
    return tl.where(place < 0, place + n, place)


@triton.jit(do_not_specialize=["step"])
def _encode(
    x, add, wire, table, tiles, status, decay, add_scale, book, top, part, step, stream,
    BITS: tl.constexpr, PART: tl.constexpr, DOT: tl.constexpr, HAS_ADD: tl.constexpr, WORDS: tl.constexpr,
    NB: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    _row, tile, x_at, add_at, numel, wire_at, offset, key, _k, entry = row_of(table, tiles)
    first = tile * (NB * BLOCK)
    left = numel - first
    x_from, add_from = x_at + first, tl.where(add_at < 0, -1, add_at + first)
    b = tl.arange(0, NB)
    n = tl.minimum(tl.maximum(left - b * BLOCK, 0), BLOCK).to(tl.int32)
    used = n > 0
    lane = tl.arange(0, 16)[None, :]
    sums = tl.zeros([NB, 16], tl.float32)
    most = tl.zeros([NB, 16], tl.float32)
    for r in range(BLOCK // 16):
        i = b[:, None] * BLOCK + lane + r * 16
        y, bad, alive = load_y(x, add, x_from, add_from, i, i < left, decay, add_scale, True, HAS_ADD)
        sums += y * y
        most = tl.maximum(most, tl.abs(y))
    squares, largest = fold_lanes(sums), tl.max(most, axis=1)
    usual = (squares >= 8.271806125530277e-25) & finite(squares)
    exponent = tl.minimum(tl.maximum(254 - (largest.to(tl.int32, bitcast=True) >> 23), 1), 253)
    power = tl.where(usual, 1.0, (exponent << 23).to(tl.float32, bitcast=True))
    if tl.max((used & (usual == 0)).to(tl.int32), axis=0) != 0:
        sums = tl.zeros([NB, 16], tl.float32)
        for r in range(BLOCK // 16):
            i = b[:, None] * BLOCK + lane + r * 16
            y, bad, alive = load_y(x, add, x_from, add_from, i, i < left, decay, add_scale, True, HAS_ADD)
            scaled = y * power[:, None]
            sums += scaled * scaled
        squares = fold_lanes(sums)
    some = (usual | (largest >= 7.888609052210118e-31)) & used
    spread = tl.sqrt_rn(tl.div_rn(tl.where(some, squares, 1.0), tl.maximum(n, 1).to(tl.float32)))
    inverse = tl.where(some, tl.div_rn(tl.zeros_like(spread) + 1.0, spread), 0.0)

    start = tl.zeros([NB], tl.int32)
    length = tl.zeros([NB], tl.int32)
    if PART:
        start, length = _window(offset, first, b, n, key, step, part, BITS, BLOCK)
    products = tl.zeros([NB, 16], tl.float32)
    norms = tl.zeros([NB, 16], tl.float32)
    for r in range(BLOCK // 16):
        column = lane + r * 16
        i = b[:, None] * BLOCK + column
        y, bad, alive = load_y(x, add, x_from, add_from, i, i < left, decay, add_scale, True, HAS_ADD)
        scaled = y * power[:, None]
        inside = _place(column, start[:, None], n[:, None]) < length[:, None]
        code, last, level = _nearest(book, y, tl.abs(scaled * inverse[:, None]), inside, BITS, PART)
        level = tl.where(i < left, level, 0.0)
        products += tl.abs(level) * tl.abs(scaled)
        norms += level * level
    product, norm = fold_lanes(products), fold_lanes(norms)
    if DOT:
        scale = tl.where(product > 0, tl.div_rn(squares, tl.where(product > 0, product, 1.0)), 0.0)
    else:
        scale = tl.div_rn(product, tl.where(used, norm, 1.0))
    scale = tl.where(inverse > 0, tl.div_rn(scale, power), 0.0)
    good = finite(scale * top)
    scale = tl.where(good, scale, 0.0)
    put32(wire, wire_at + (tile * NB + b) * 4, scale, used, WORDS)
    flag(status, 0, used & (good == 0))

    codes_at = wire_at + (numel + BLOCK - 1) // BLOCK * 4
    if PART:  # the last bits of the codes in the window, in its order
        streams_at = codes_at + (numel * BITS + 7) // 8 + tile * NB * stream
        for w0 in range(0, (tl.max(length, axis=0) + 7) // 8 * 8, C):
            w = w0 + tl.arange(0, C)[None, :]
            column = w + start[:, None]
            column = tl.where(column < n[:, None], column, column - n[:, None])
            i = b[:, None] * BLOCK + column
            mask = w < length[:, None]
            y, bad, alive = load_y(x, add, x_from, add_from, i, mask, decay, add_scale, True, HAS_ADD)
            size = tl.abs(y * power[:, None] * inverse[:, None])
            code, last, level = _nearest(book, y, size, mask, BITS, PART)
            bits = tl.reshape(tl.where(mask, last, 0), [NB, C // 8, 8]) << tl.arange(0, 8)[None, None, :]
            at = w0 // 8 + tl.arange(0, C // 8)[None, :]
            to = wire + streams_at + b[:, None] * stream + at
            tl.store(to, tl.sum(bits, axis=2).to(tl.uint8), mask=at * 8 < length[:, None])
    tl.debug_barrier()  # all warps have read x
    room = (tl.minimum(left, NB * BLOCK) * BITS + 7) // 8
    for c0 in range(0, BLOCK, C):
        c = c0 + tl.arange(0, C)[None, :]
        i = b[:, None] * BLOCK + c
        mask = (c < BLOCK) & (i < left)
        y, bad, alive = load_y(x, add, x_from, add_from, i, mask, decay, add_scale, True, HAS_ADD)
        inside = _place(c, start[:, None], n[:, None]) < length[:, None]
        size = tl.abs(y * power[:, None] * inverse[:, None])
        code, last, level = _nearest(book, y, size, inside, BITS, PART)
        store(x + x_from + i, y - level * scale[:, None], mask)
        if BITS:
            put_columns(wire, codes_at + first // 8 * BITS, tl.where(mask, code, 0), c0, room, BITS, BLOCK)
        flag(status, 0, bad)
        flag(status, 1 + entry, alive)
    if left <= NB * BLOCK:  # zeros up to a multiple of four bytes
        end = (numel * BITS + 7) // 8
        if PART:
            end += (tile * NB + tl.sum(used.to(tl.int32), axis=0) - 1) * stream
            end += tl.sum(tl.where(b == (left - 1) // BLOCK, (length + 7) // 8, 0), axis=0)
        pad = end + tl.arange(0, 4)
        tl.store(wire + codes_at + pad, tl.zeros([4], tl.uint8), mask=pad < (end + 3) // 4 * 4)


@triton.jit(do_not_specialize=["step"])
def _decode(
    wires, messages, stride, table, tiles, skip, out, scale, book, part, step, stream,
    ACCUMULATE: tl.constexpr, BITS: tl.constexpr, PART: tl.constexpr, WORDS: tl.constexpr, NB: tl.constexpr,
    C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    _row, tile, x_at, _add, numel, wire_at, offset, key, _k, entry = row_of(table, tiles)
    first = tile * (NB * BLOCK)
    left = numel - first
    b = tl.arange(0, NB)
    n = tl.minimum(tl.maximum(left - b * BLOCK, 0), BLOCK).to(tl.int32)
    scales_at = wire_at + (tile * NB + b[:, None]) * 4
    codes_at = wire_at + (numel + BLOCK - 1) // BLOCK * 4
    start = tl.zeros([NB], tl.int32)
    length = tl.zeros([NB], tl.int32)
    if PART:
        start, length = _window(offset, first, b, n, key, step, part, BITS, BLOCK)
    streams_at = codes_at + (numel * BITS + 7) // 8 + (tile * NB + b[:, None]) * stream
    skipped = tl.load(skip + entry) != 0
    for c0 in range(0, BLOCK, C):
        c = c0 + tl.arange(0, C)[None, :]
        i = b[:, None] * BLOCK + c
        mask = (c < BLOCK) & (i < left)
        total = tl.zeros([NB, C], tl.float32)
        if skipped == 0:
            place = _place(c, start[:, None], n[:, None])
            inside = mask & (place < length[:, None])
            message = wires
            for m in range(messages):
                size = take_f32(message, scales_at, (n > 0)[:, None], WORDS)
                code = tl.zeros([NB, C], tl.int32)
                level = tl.zeros([NB, C], tl.float32)
                if BITS:
                    code = take_code(message, codes_at + first // 8 * BITS, i, mask, BITS)
                if PART:
                    byte = tl.load(message + streams_at + place // 8, mask=inside, other=0).to(tl.int32)
                    # The finer codebook lies behind the coarse one. Outside the window the byte is 0, and unused.
                    fine = 2 * code + ((byte >> (place % 8)) & 1) + (2**BITS if BITS else 0)
                    if BITS:
                        level = tl.load(book + tl.where(inside, fine, code))
                    else:
                        level = tl.load(book + fine, mask=inside, other=0.0)
                else:
                    level = tl.load(book + code)
                v = level * size
                if BITS == 0:  # a level that is not there, times a peer's infinite scale, would be NaN
                    v = tl.where(level == 0, 0.0, v)
                total = tl.where(m == 0, v, total + v)  # 0 + -0.0 would be 0.0: the first is taken as it is
                message += stride
            finish(out, x_at + first, i, mask, total, scale, ACCUMULATE)
        elif ACCUMULATE == 0:
            store(out + x_at + first + i, total, mask)


def _book(levels: Tensor, bits: int, device: torch.device) -> Tensor:
    """All levels of both codebooks, then the boundaries of both; without content where one is empty."""

    def make() -> Tensor:
        cut = 1 << bits >> 1
        halves = [half for half in (levels[:cut], levels[cut:]) if len(half)]
        whole = [torch.cat((-half.flip(0), half)) for half in halves]
        bounds = [(half[1:] + half[:-1]) * 0.5 for half in halves]
        return torch.cat((*whole, *bounds)).to(device, non_blocking=True)

    return work.kept(levels, ("book", bits, device), make)


@kernel("codebook_encode")
def codebook_encode(x, add, wire, table, status, decay, add_scale, levels, bits, part, dot, block, step):
    form = (bits, part, block)
    work.check_encode("codebook_encode", x, add, wire, table, status, lambda row: section(row.numel, *form), *form)
    shape = pieces(block, ENCODE, PIECE)
    w = work.tiles(table, shape.tile, wire.device)
    launch(
        _encode, w.programs, x, add, wire, w.table, w.tiles, status, decay, add_scale, _book(levels, bits, wire.device),
        work.kept(levels, "top", lambda: float(levels[-1])), part, step, (window_length(block, bits, part) + 7) // 8,
        BITS=bits, PART=part > 0, DOT=dot, HAS_ADD=add is not None, WORDS=work.words(wire), NB=shape.nb, C=shape.chunk,
        BLOCK=block,
    )  # fmt: skip


@kernel("codebook_decode")
def codebook_decode(wires, table, skip, out, scale, accumulate, levels, bits, part, block, step):
    form = (bits, part, block)
    work.check_decode("codebook_decode", wires, table, skip, out, lambda row: section(row.numel, *form), *form)
    shape = pieces(block, DECODE, DECODE)
    w = work.tiles(table, shape.tile, out.device, decoding=True)
    launch(
        _decode, w.programs, wires, wires.shape[0], wires.stride(0), w.table, w.tiles, skip, out, scale,
        _book(levels, bits, out.device), part, step, (window_length(block, bits, part) + 7) // 8,
        ACCUMULATE=accumulate, BITS=bits, PART=part > 0, WORDS=work.words(wires), NB=shape.nb, C=shape.chunk,
        BLOCK=block,
    )  # fmt: skip
