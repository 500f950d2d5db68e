"""Dense and cast: fp32 as it is, or bfloat16 / float16. Layouts and formulas: ``ops/reference/{dense,cast}.py``."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..reference.rows import Row, pad4
from . import work
from .common import bfloat16_bits, finish, finite, flag, load_y, put32, row_of, store, take32
from .launch import launch
from .registry import kernel

TILE = 2048


def _section(size: int, row: Row) -> int:
    return pad4(size * row.numel)


@triton.jit
def _encode(
    x, add, wire, table, tiles, status, decay, add_scale,
    HAS_X: tl.constexpr, HAS_ADD: tl.constexpr, FORM: tl.constexpr, WORDS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    _, tile, x_at, add_at, numel, wire_at, _, _, _, entry = row_of(table, tiles)
    first = tile * TILE
    i = tl.arange(0, TILE)
    mask = i < numel - first
    y, bad, alive = load_y(
        x, add, tl.where(x_at < 0, -1, x_at + first), tl.where(add_at < 0, -1, add_at + first), i, mask, decay,
        add_scale, HAS_X, HAS_ADD,
    )  # fmt: skip
    if FORM == 0:
        put32(wire, wire_at + first * 4 + i * 4, y, mask, WORDS)
        left = tl.zeros_like(y)
    else:
        if FORM == 1:
            bits = bfloat16_bits(y)
            value = bits.to(tl.bfloat16, bitcast=True).to(tl.float32)
        else:
            bits = y.to(tl.float16).to(tl.uint16, bitcast=True)
            value = bits.to(tl.float16, bitcast=True).to(tl.float32)
        bad = bad | ((finite(value) == 0) & mask)
        zero = tl.zeros_like(bits)
        bits = tl.where(finite(value) & mask, bits, zero)
        left = tl.where(finite(value), y - value, y)
        inside = i < ((numel - first + 1) // 2) * 2  # the section is padded to 4 bytes
        at = wire + wire_at + first * 2 + i * 2
        tl.store(at, (bits & 0xFF).to(tl.uint8), mask=inside)
        tl.store(at + 1, (bits >> 8).to(tl.uint8), mask=inside)
    if HAS_X:
        store(x + x_at + first + i, left, mask & (x_at >= 0))
    flag(status, 0, bad)
    flag(status, 1 + entry, alive)


@triton.jit
def _decode(
    wires, messages, stride, table, tiles, skip, out, scale,
    ACCUMULATE: tl.constexpr, FORM: tl.constexpr, WORDS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    _, tile, x_at, _, numel, wire_at, _, _, _, entry = row_of(table, tiles)
    first = tile * TILE
    i = tl.arange(0, TILE)
    mask = i < numel - first
    skipped = tl.load(skip + entry) != 0
    if skipped & ACCUMULATE:
        return
    total = tl.zeros([TILE], tl.float32)
    if skipped:
        store(out + x_at + first + i, total, mask)
        return
    message = wires
    for m in range(messages):
        if FORM == 0:
            v = take32(message, wire_at + first * 4 + i * 4, mask, WORDS).to(tl.float32, bitcast=True)
        else:
            at = message + wire_at + first * 2 + i * 2
            low = tl.load(at, mask=mask, other=0).to(tl.uint16)
            high = tl.load(at + 1, mask=mask, other=0).to(tl.uint16)
            bits = low | (high << 8)
            if FORM == 1:
                v = bits.to(tl.bfloat16, bitcast=True).to(tl.float32)
            else:
                v = bits.to(tl.float16, bitcast=True).to(tl.float32)
        total = tl.where(m == 0, v, total + v)
        message += stride
    finish(out, x_at + first, i, mask, total, scale, ACCUMULATE)


def _encoded(op: str, form: int, size: int, x, add, wire: Tensor, table: Tensor, status: Tensor, decay, add_scale):
    work.check_encode(op, x, add, wire, table, status, lambda row: _section(size, row), size)
    w = work.tiles(table, TILE, wire.device)
    launch(
        _encode, w.programs, x, add, wire, w.table, w.tiles, status, decay, add_scale,
        HAS_X=x is not None, HAS_ADD=add is not None, FORM=form, WORDS=work.words(wire), TILE=TILE,
    )  # fmt: skip


def _decoded(op: str, form: int, size: int, wires: Tensor, table: Tensor, skip: Tensor, out, scale, accumulate):
    work.check_decode(op, wires, table, skip, out, lambda row: _section(size, row), size)
    w = work.tiles(table, TILE, out.device, decoding=True)
    launch(
        _decode, w.programs, wires, wires.shape[0], wires.stride(0), w.table, w.tiles, skip, out, scale,
        ACCUMULATE=accumulate, FORM=form, WORDS=work.words(wires), TILE=TILE,
    )  # fmt: skip


@kernel("dense_encode")
def dense_encode(x, add, wire, table, status, decay, add_scale):
    _encoded("dense_encode", 0, 4, x, add, wire, table, status, decay, add_scale)


@kernel("dense_decode")
def dense_decode(wires, table, skip, out, scale, accumulate):
    _decoded("dense_decode", 0, 4, wires, table, skip, out, scale, accumulate)


@kernel("cast_encode")
def cast_encode(x, add, wire, table, status, decay, add_scale, half):
    _encoded("cast_encode", 2 if half else 1, 2, x, add, wire, table, status, decay, add_scale)


@kernel("cast_decode")
def cast_decode(wires, table, skip, out, scale, accumulate, half):
    _decoded("cast_decode", 2 if half else 1, 2, wires, table, skip, out, scale, accumulate)
