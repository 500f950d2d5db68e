"""Sign: one bit per element, one scale per block. Formulas and layout: ``ops/reference/sign.py``."""

from __future__ import annotations

import triton
import triton.language as tl

from ..reference.sign import section
from . import work
from .blocks import blocks
from .common import finish, finite, flag, lane_sums, load_y, put32, put_codes, row_of, store, take_code, take_f32
from .launch import launch
from .registry import kernel


@triton.jit
def _encode(
    x, add, wire, table, tiles, status, decay, add_scale,
    KIND: tl.constexpr, HAS_ADD: tl.constexpr, WORDS: tl.constexpr, NB: tl.constexpr, WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    _, tile, x_at, add_at, numel, wire_at, _, _, _, entry = row_of(table, tiles)
    first = tile * (NB * BLOCK)
    left = numel - first
    sizes, squares = lane_sums(x, add, x_at, add_at, first, numel, decay, add_scale, HAS_ADD, NB, BLOCK)
    b = tl.arange(0, NB)
    count = tl.minimum(tl.maximum(left - b * BLOCK, 1), BLOCK).to(tl.float32)
    if KIND == 0:
        scale = tl.div_rn(sizes, count)
    elif KIND == 1:
        scale = tl.sqrt_rn(tl.div_rn(squares, count))
    else:
        scale = tl.where(sizes > 0, tl.div_rn(squares, tl.where(sizes > 0, sizes, 1.0)), 0.0)
    used = b * BLOCK < left
    overflow = used & (finite(scale) == 0)
    scale = tl.where(finite(scale), scale, 0.0)

    c = tl.arange(0, WIDE)[None, :]
    i = b[:, None] * BLOCK + c
    mask = (c < BLOCK) & (i < left)
    y, bad, alive = load_y(
        x, add, x_at + first, tl.where(add_at < 0, -1, add_at + first), i, mask, decay, add_scale, True, HAS_ADD
    )
    negative = y < 0
    value = tl.where(negative, scale[:, None] * -1.0, scale[:, None])  # minus is 0 - f, other for zeros
    store(x + x_at + first + i, y - value, mask)

    count_all = (numel + BLOCK - 1) // BLOCK
    put32(wire, wire_at + (tile * NB + b) * 4, scale, used, WORDS)
    bits_at = wire_at + count_all * 4 + first // 8
    room = (left + 31) // 32 * 4  # bytes to the end of the section
    codes = (negative & mask).to(tl.int32)
    if WIDE == BLOCK:
        put_codes(wire, bits_at, tl.reshape(codes, [NB * WIDE]), room, 1)
    else:  # the unused columns must not reach the wire: byte by byte
        byte = tl.sum(tl.reshape(codes, [NB, WIDE // 8, 8]) << tl.arange(0, 8)[None, None, :], axis=2)
        m = tl.arange(0, WIDE // 8)[None, :]
        at = b[:, None] * (BLOCK // 8) + m
        tl.store(wire + bits_at + at, byte.to(tl.uint8), mask=(m < BLOCK // 8) & (at < room))
    flag(status, 0, bad)
    flag(status, 0, overflow)
    flag(status, 1 + entry, alive)


@triton.jit
def _decode(
    wires, messages, stride, table, tiles, skip, out, scale,
    ACCUMULATE: tl.constexpr, WORDS: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    _, tile, x_at, _, numel, wire_at, _, _, _, entry = row_of(table, tiles)
    first = tile * TILE
    i = tl.arange(0, TILE)
    mask = i < numel - first
    total = tl.zeros([TILE], tl.float32)
    if tl.load(skip + entry) == 0:
        bits_at = wire_at + (numel + BLOCK - 1) // BLOCK * 4 + first // 8
        message = wires
        for m in range(messages):
            size = take_f32(message, wire_at + (first + i) // BLOCK * 4, mask, WORDS)
            v = tl.where(take_code(message, bits_at, i, mask, 1) != 0, size * -1.0, size)
            total = tl.where(m == 0, v, total + v)
            message += stride
        finish(out, x_at + first, i, mask, total, scale, ACCUMULATE)
    elif ACCUMULATE == 0:
        store(out + x_at + first + i, total, mask)


@kernel("sign_encode")
def sign_encode(x, add, wire, table, status, decay, add_scale, kind, block):
    work.check_encode("sign_encode", x, add, wire, table, status, lambda row: section(row.numel, block), block)
    shape = blocks(block)
    w = work.tiles(table, shape.tile, wire.device)
    launch(
        _encode, w.programs, x, add, wire, w.table, w.tiles, status, decay, add_scale,
        KIND=kind, HAS_ADD=add is not None, WORDS=work.words(wire), NB=shape.nb, WIDE=shape.wide, BLOCK=block,
    )  # fmt: skip


TILE = 2048


@kernel("sign_decode")
def sign_decode(wires, table, skip, out, scale, accumulate, block):
    work.check_decode("sign_decode", wires, table, skip, out, lambda row: section(row.numel, block), block)
    w = work.tiles(table, TILE, out.device, decoding=True)
    launch(
        _decode, w.programs, wires, wires.shape[0], wires.stride(0), w.table, w.tiles, skip, out, scale,
        ACCUMULATE=accumulate, WORDS=work.words(wires), BLOCK=block, TILE=TILE,
    )  # fmt: skip
