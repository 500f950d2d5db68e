"""Message headers. Layout and meaning: ``compcomm/core/packing.py`` and ``ops/reference/header.py``."""

from __future__ import annotations

import triton
import triton.language as tl

from ..reference.header import FIELDS, MAGIC, size
from . import work
from .launch import launch
from .registry import kernel


@triton.jit(do_not_specialize=["flags", "rank", "step", "bucket"])
def _write(
    wire, status, places, flags, rank, step, bucket, count, nbytes,
    MAGIC: tl.constexpr, FIELDS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    line = places + 2 * tl.program_id(0)
    at, length = tl.load(line), tl.load(line + 1)
    word = tl.arange(0, 8)[:, None]
    byte = tl.arange(0, 4)[None, :]
    met = (tl.load(status) != 0).to(tl.int64)
    value = tl.where(word == 0, MAGIC, tl.where(word == 1, flags | met | (rank << 16), 0))
    value = tl.where(word == 2, step, tl.where(word == 3, bucket, tl.where(word == 4, length, value)))
    bits = (value >> (8 * byte)) & 0xFF
    tl.store(wire + at + 4 * word + byte, bits.to(tl.uint8), mask=word < FIELDS // 4)
    b = tl.arange(0, WIDE)[:, None]
    s = b * 8 + tl.arange(0, 8)[None, :]
    dead = (tl.load(status + 1 + s, mask=s < count, other=1) == 0).to(tl.int32)
    marks = tl.sum(dead << tl.arange(0, 8)[None, :], axis=1)
    b = tl.arange(0, WIDE)
    tl.store(wire + at + FIELDS + b, marks.to(tl.uint8), mask=b < nbytes - FIELDS)


@triton.jit
def _word(message, n):
    byte = tl.arange(0, 4)
    return tl.sum(tl.load(message + 4 * n + byte).to(tl.int64) << (8 * byte).to(tl.int64), axis=0)


@triton.jit(do_not_specialize=["step", "bucket"])
def _read(
    wires, ranks, stride, outcome, fault, lengths, step, bucket, count,
    MAGIC: tl.constexpr, FIELDS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    b = tl.arange(0, WIDE)
    zero = tl.full([WIDE], 255, tl.int32)
    bad = tl.zeros([], tl.int64)
    found = tl.zeros([], tl.int64)
    message = wires
    for rank in range(ranks):
        flags = _word(message, 1)
        ours = (_word(message, 0) == MAGIC) & ((flags >> 16) == rank)
        right = ours & (_word(message, 2) == step) & (_word(message, 3) == bucket)
        right = right & (_word(message, 4) == tl.load(lengths + rank)) & ((flags & 0xFFFC) == 0)
        kind = tl.where(ours & ((flags & 2) != 0), 1, tl.where(right, 0, 2))
        found = tl.where((found == 0) & (kind != 0), rank * 4 + kind, found)
        bad = bad | (flags & 1)
        zero = zero & tl.load(message + FIELDS + b, mask=b < (count + 7) // 8, other=0).to(tl.int32)
        message += stride
    tl.store(outcome, tl.where(found != 0, 1, bad).to(tl.uint8))
    tl.store(fault, found)
    j = tl.arange(0, 8)[None, :]
    s = b[:, None] * 8 + j
    tl.store(outcome + 1 + s, ((zero[:, None] >> j) & 1).to(tl.uint8), mask=s < count)


@triton.jit(do_not_specialize=["due", "count"])
def _sums(sums, outcome, fault, due, count, WIDE: tl.constexpr):
    met = tl.load(sums + 1)
    failed, moved = met != met, tl.load(sums) != due
    tl.store(outcome, (failed | moved | (met > 0)).to(tl.uint8))
    tl.store(fault, tl.where(failed, 1, tl.where(moved, 2, 0)).to(tl.int64))
    s = tl.arange(0, WIDE)
    alive = tl.load(sums + 2 + s, mask=s < count, other=1.0)
    tl.store(outcome + 1 + s, (alive == 0).to(tl.uint8), mask=s < count)


@kernel("header_write")
def header_write(wire, status, places, flags, rank, step, bucket):
    count = status.numel() - 1
    nbytes = -(-size(count) // 4) * 4
    launch(
        _write, len(places), wire, status, work.on(places, wire.device), flags, rank, step & 0xFFFFFFFF,
        bucket & 0xFFFFFFFF, count, nbytes,
        MAGIC=MAGIC, FIELDS=FIELDS, WIDE=triton.next_power_of_2(max(4, nbytes - FIELDS)), num_warps=1,
    )  # fmt: skip


@kernel("header_read")
def header_read(wires, outcome, fault, lengths, step, bucket):
    count = outcome.numel() - 1
    launch(
        _read, 1, wires, wires.shape[0], wires.stride(0), outcome, fault, work.on(lengths, outcome.device),
        step & 0xFFFFFFFF, bucket & 0xFFFFFFFF, count,
        MAGIC=MAGIC, FIELDS=FIELDS, WIDE=triton.next_power_of_2(max(4, -(-count // 8))), num_warps=1,
    )  # fmt: skip


@kernel("sums_read")
def sums_read(sums, outcome, fault, due):
    count = outcome.numel() - 1
    launch(_sums, 1, sums, outcome, fault, due, count, WIDE=triton.next_power_of_2(max(16, count)), num_warps=1)
