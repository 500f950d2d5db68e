"""Natural compression: random rounding to powers of two. Formulas and layout: ``ops/reference/natural.py``."""

from __future__ import annotations

import triton
import triton.language as tl

from ..reference.natural import section
from . import work
from .common import dither_each, dither_run, finish, load_y, row_of, store, take32
from .launch import launch
from .quantised import quads, raise_flag
from .registry import kernel
from .streams import natural_order, nothing

TILE = 2048


@triton.jit(do_not_specialize=["step", "rank"])
def _encode(
    x, add, wire, table, tiles, status, gain, decay, add_scale, step, rank,
    HAS_ADD: tl.constexpr, WORDS: tl.constexpr, STEP: tl.constexpr, RUNS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row, tile, x_at, add_at, numel, wire_at, offset, key, _, entry = row_of(table, tiles)
    first = tile * TILE
    left = tl.multiple_of(tl.minimum(numel - first, TILE).to(tl.int32), STEP)
    i = tl.arange(0, TILE)
    mask = i < left
    x_from = tl.multiple_of(x_at + first, STEP)
    add_from = tl.multiple_of(tl.where(add_at < 0, -16, add_at + first), STEP)
    y, bad, alive = load_y(x, add, x_from, add_from, i, mask, decay, add_scale, True, HAS_ADD)
    if RUNS:
        dither = dither_run(offset + first, step, rank, 0, key, TILE)
    else:
        dither = dither_each(offset + first + i, step, rank, 0, key)
    t = (y * tl.load(gain + row)).to(tl.int32, bitcast=True) + (dither * 128 + 64)
    infinite = (t & 0x7F800000) == 0x7F800000
    t = tl.where(infinite, (t & -2147483648) | 0x7F000000, t)
    store(x + x_from + i, y - (t & -8388608).to(tl.float32, bitcast=True), mask)
    exponents_at = tl.multiple_of(wire_at + first, 4) if WORDS else wire_at + first
    tl.store(wire + exponents_at + i, ((t >> 23) & 255).to(tl.uint8), mask=mask)
    negative = tl.reshape((mask & (t < 0)).to(tl.int32), [TILE // 8, 8])
    signs = tl.sum(negative << tl.arange(0, 8)[None, :], axis=1)
    m = tl.arange(0, TILE // 8)
    tl.store(wire + wire_at + numel + first // 8 + m, signs.to(tl.uint8), mask=m * 8 < left)
    if numel - first <= TILE:  # zeros up to a multiple of four
        size = numel + (numel + 7) // 8
        pad = tl.arange(0, 4)
        tl.store(wire + wire_at + size + pad, tl.zeros([4], tl.uint8), mask=size + pad < (size + 3) // 4 * 4)
    met = (bad | (infinite & mask)).to(tl.int32) * 65536 + alive.to(tl.int32)
    met = tl.sum(met, axis=0)
    raise_flag(status, 0, met >= 65536)
    raise_flag(status, 1 + entry, (met & 65535) != 0)


@triton.jit
def _plus(total, message, wire_at, signs_at, g, left, WORDS: tl.constexpr):
    low = take32(message, wire_at + g * 8, g * 8 < left, WORDS)
    high = take32(message, wire_at + g * 8 + 4, g * 8 + 4 < left, WORDS)
    signs = tl.load(message + signs_at + g, mask=g * 8 < left, other=0).to(tl.uint32)
    sums = ()
    for s in tl.static_range(8):
        exponent = ((low if s < 4 else high) >> (s % 4 * 8)) & 255
        value = (exponent << 23) | ((signs >> s) << 31)
        sums = sums + (total[s] + value.to(tl.float32, bitcast=True),)
    return sums


@triton.jit
def _decode(
    wires, messages, stride, table, tiles, skip, out, scale,
    ACCUMULATE: tl.constexpr, WORDS: tl.constexpr, STEP: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    _, tile, x_at, _, numel, wire_at, _, _, _, entry = row_of(table, tiles)
    first = tile * TILE
    x_from = tl.multiple_of(x_at + first, STEP)
    left = tl.multiple_of(tl.minimum(numel - first, TILE).to(tl.int32), STEP)
    i = tl.arange(0, TILE)
    if tl.load(skip + entry) == 0:
        total = nothing(8, TILE // 8)
        g = tl.arange(0, TILE // 8)
        message = wires
        for _m in tl.range(messages, loop_unroll_factor=4):
            total = _plus(total, message, wire_at + first, wire_at + numel + first // 8, g, left, WORDS)
            message += stride
        finish(out, x_from, i, i < left, natural_order(total, 8), scale, ACCUMULATE)
    elif ACCUMULATE == 0:
        store(out + x_from + i, tl.zeros([TILE], tl.float32), i < left)


@kernel("natural_encode")
def natural_encode(x, add, wire, table, status, decay, add_scale, gain, step, rank):
    work.check_encode("natural_encode", x, add, wire, table, status, section)
    w = work.tiles(table, TILE, wire.device)
    launch(
        _encode, w.programs, x, add, wire, w.table, w.tiles, status, work.on(gain, wire.device), decay, add_scale,
        step, rank, HAS_ADD=add is not None, WORDS=work.words(wire), STEP=quads(table, (0, 1, 2)),
        RUNS=work.aligned(table, 128), TILE=TILE,
    )  # fmt: skip


@kernel("natural_decode")
def natural_decode(wires, table, skip, out, scale, accumulate):
    work.check_decode("natural_decode", wires, table, skip, out, section)
    w = work.tiles(table, TILE, out.device, decoding=True)
    launch(
        _decode, w.programs, wires, wires.shape[0], wires.stride(0), w.table, w.tiles, skip, out, scale,
        ACCUMULATE=accumulate, WORDS=work.words(wires), STEP=quads(table, (0, 2)), TILE=TILE,
    )  # fmt: skip
