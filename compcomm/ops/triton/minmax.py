"""MinMax: equal levels from a block's least element to its greatest. Formulas and layout:
``ops/reference/minmax.py``."""

from __future__ import annotations

import triton
import triton.language as tl

from ..reference.minmax import section
from . import work
from .common import finite, load_y, nearest_even, put32, row_of, store, take_f32, uniform
from .launch import launch
from .quantised import (
    INFINITE,
    TINY,
    clean_tile,
    decode,
    dither_tile,
    over_block,
    per_block,
    places,
    quads,
    raise_flag,
    raw_y,
    shape,
    size_bits,
)
from .registry import kernel
from .streams import put_stream


@triton.jit
def _ends(y, mask):
    """Least and greatest of each block; infinities the wrong way round where it has no element."""
    low = tl.min(tl.min(tl.where(mask, y, float("inf")), axis=0), axis=1)
    high = tl.max(tl.max(tl.where(mask, y, float("-inf")), axis=0), axis=1)
    return low, high


@triton.jit(do_not_specialize=["step", "rank"])
def _encode(
    x, add, wire, table, tiles, status, gain, decay, add_scale, step, rank,
    HAS_ADD: tl.constexpr, WORDS: tl.constexpr, WHOLE: tl.constexpr, STEP: tl.constexpr, RUNS: tl.constexpr,
    NB: tl.constexpr, WIDE: tl.constexpr, C: tl.constexpr, CHUNKS: tl.constexpr, BLOCK: tl.constexpr,
    BITS: tl.constexpr, STOCHASTIC: tl.constexpr,
):  # fmt: skip
    TOP: tl.constexpr = 2**BITS - 1
    row, tile, x_at, add_at, numel, wire_at, offset, key, _, entry = row_of(table, tiles)
    first = tile * (NB * BLOCK)
    all_left = tl.minimum(numel - first, NB * BLOCK)
    chunks = 1 if CHUNKS == 1 else (all_left + WIDE - 1) // WIDE
    x_from = tl.multiple_of(x_at + first, STEP)
    add_from = tl.multiple_of(tl.where(add_at < 0, -16, add_at + first), STEP)
    if CHUNKS == 1:
        left = tl.multiple_of(all_left.to(tl.int32), STEP)
        i, mask = places(left, NB, WIDE, C, BLOCK)
        y, seen = raw_y(x, add, x_from, add_from, i, mask, decay, add_scale, HAS_ADD)
        alive = tl.max(tl.ravel(size_bits(seen)), axis=0) != 0
        bad = tl.max(tl.ravel(size_bits(y)), axis=0) >= INFINITE
        if bad:
            y, _bad, _alive = load_y(x, add, x_from, add_from, i, mask, decay, add_scale, True, HAS_ADD)
        low, high = _ends(y, mask)
    else:
        low = tl.full([NB], float("inf"), tl.float32)
        high = tl.full([NB], float("-inf"), tl.float32)
        bads = tl.zeros([NB], tl.int32)
        alives = tl.zeros([NB], tl.int32)
        for c in range(chunks):
            more, _bad, _alive, _left, _i, _mask, _from = clean_tile(
                x, add, x_from, add_from, all_left, c, decay, add_scale, HAS_ADD, STEP, NB, WIDE, C, BLOCK
            )
            least, greatest = _ends(more, _mask)
            low, high = tl.minimum(low, least), tl.maximum(high, greatest)
            bads = tl.maximum(bads, over_block(_bad.to(tl.int32)))
            alives = tl.maximum(alives, over_block(_alive.to(tl.int32)))
        bad, alive = tl.max(bads, axis=0) != 0, tl.max(alives, axis=0) != 0

    low, high = low + 0.0, high + 0.0  # adding zero makes -0 positive
    b = tl.arange(0, NB)
    used = b * BLOCK < all_left
    extent = high - low
    factor = tl.load(gain + row)
    sent_low, sent_high = low * factor, high * factor
    good = finite(extent) & finite(sent_high - sent_low)
    live = good & (extent >= TINY)
    sent_high = tl.where(good, tl.where(live, sent_high, sent_low), 0.0)
    sent_low = tl.where(good, sent_low, 0.0)
    put32(wire, wire_at + (tile * NB + b) * 8, sent_low, used, WORDS)
    put32(wire, wire_at + (tile * NB + b) * 8 + 4, sent_high, used, WORDS)
    raise_flag(status, 0, bad | (tl.max((used & (good == 0)).to(tl.int32), axis=0) != 0))
    raise_flag(status, 1 + entry, alive)

    top = tl.full([NB], TOP, tl.float32)
    inverse = tl.div_rn(top, extent)
    greater = (inverse.to(tl.int32, bitcast=True) + 1).to(tl.float32, bitcast=True)
    inverse = tl.where(live, tl.where(extent * inverse < top, greater, inverse), 0.0)
    eps = tl.maximum(-low, high) * inverse * 1.1920928955078125e-07 + TOP * 4.76837158203125e-07  # 2^-23, 2^-21
    eps = per_block(tl.where(live, tl.minimum(eps, 0.5), 0.0))
    unit = per_block(tl.div_rn(sent_high - sent_low, top))
    low, inverse, live = per_block(low), per_block(inverse), per_block(live)
    sent_low, sent_high = per_block(sent_low), per_block(sent_high)
    codes_at = wire_at + (numel + BLOCK - 1) // BLOCK * 8
    for c in range(chunks):
        if CHUNKS > 1:
            y, _bad, _alive, left, i, mask, x_from_c = clean_tile(
                x, add, x_from, add_from, all_left, c, decay, add_scale, HAS_ADD, STEP, NB, WIDE, C, BLOCK
            )
        else:
            x_from_c = x_from
        t = (y - low) * inverse
        if STOCHASTIC:
            u = uniform(dither_tile(offset, first + c * WIDE, i, step, rank, key, RUNS))
            level = tl.floor(t + tl.minimum(tl.maximum(u, eps), 1.0 - eps))
        else:
            level = nearest_even(t)
        level = tl.minimum(tl.maximum(tl.where(live, level, 0.0), 0.0), TOP * 1.0)
        value = tl.where(level == TOP, sent_high, sent_low + level * unit)
        store(x + x_from_c + i, y - value, mask)
        put_stream(wire, codes_at, numel, first + c * WIDE, level.to(tl.int32), left, BITS, BLOCK, WHOLE)


@triton.jit
def _head(message, at, mask, WORDS: tl.constexpr, TOP: tl.constexpr):
    low, high = take_f32(message, at, mask, WORDS), take_f32(message, at + 4, mask, WORDS)
    return low, high, tl.div_rn(high - low, tl.full(low.shape, TOP, tl.float32))


@triton.jit
def _value(code, head, TOP: tl.constexpr):
    low, high, unit = head
    return tl.where(code == TOP, high, low + code.to(tl.float32) * unit)


@kernel("minmax_encode")
def minmax_encode(x, add, wire, table, status, decay, add_scale, gain, bits, stochastic, block, step, rank):
    work.check_encode(
        "minmax_encode", x, add, wire, table, status, lambda row: section(row.numel, bits, block), bits, block
    )
    s = shape(block)
    w = work.tiles(table, s.tile, wire.device)
    words, quad = work.words(wire), quads(table, (0, 1, 2))
    launch(
        _encode, w.programs, x, add, wire, w.table, w.tiles, status, work.on(gain, wire.device), decay, add_scale,
        step, rank, HAS_ADD=add is not None, WORDS=words, WHOLE=words and s.whole, STEP=quad,
        RUNS=stochastic and s.runs and work.aligned(table, 128), NB=s.nb, WIDE=s.wide, C=min(32 * quad, s.wide),
        CHUNKS=s.chunks, BLOCK=block, BITS=bits, STOCHASTIC=stochastic, num_warps=s.warps,
    )  # fmt: skip


@kernel("minmax_decode")
def minmax_decode(wires, table, skip, out, scale, accumulate, bits, block):
    decode(
        "minmax_decode", wires, table, skip, out, scale, accumulate, bits, block, 2**bits - 1,
        lambda row: section(row.numel, bits, block), 8, _head, _value,
    )  # fmt: skip
