"""Rand-k: the mask is a keyed permutation, drawn on the device. Layout and formulas: ``ops/reference/randk.py``.

Encoding: a pass over the row, 12 bytes per element, and a program per 1024 kept elements, each of which touches a
sector of 32 bytes of x. An x of half precision cannot hold y: there the kept elements are read first, of x and add,
what stays of them waits in fp32 scratch, and a third launch puts it back after the pass. Decoding: 4 bytes per element
to clear, then each kept element is read and written once, with all messages added in between.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.randk import _STREAM, _check_k, section
from ..scratch import scratch
from . import work
from .common import finite, flag, load_y, philox, put32, row_of, store, take_f32
from .launch import launch
from .registry import kernel

TILE = 4096
KEPT = 1024
STREAM = tl.constexpr(_STREAM)


class Kept(NamedTuple):
    """A program per 1024 kept elements, and where each row's begin among those of all rows (int64 [rows])."""

    tiles: work.Work
    firsts: Tensor
    count: int


def _kept(table: Tensor, device: torch.device, *, decoding: bool = False) -> Kept:
    def make() -> Kept:
        k = table.cpu()[:, 6]
        if decoding:
            k = torch.where(table.cpu()[:, 0] == -1, 0, k)
        firsts = (k.cumsum(0) - k).to(device, non_blocking=True)
        return Kept(work.tiles(table, KEPT, device, decoding=decoding, column=6), firsts, max(1, int(k.sum())))

    return work.kept(table, ("rand-k", decoding, device), make)


@triton.jit
def permuted(m, numel, key, offset, step):
    """The indices (int64) of slots ``m`` (int64) of a row: six Feistel rounds, again where they lead outside."""
    zero = tl.zeros([1], tl.uint32)
    one = tl.full([1], 1, tl.int64)
    a0, a1, a2, a3 = philox(zero, one * step, one * offset, STREAM, one * key)
    a4, a5, _, _ = philox(zero + 1, one * step, one * offset, STREAM, one * key)
    half = tl.full([], 4, tl.int32)
    for bits in tl.static_range(4, 20):  # numel is 2^40 at most
        half += (numel > 4**bits).to(tl.int32)
    shift = zero.to(tl.int64) + half
    mask = ((one << shift) - 1).to(tl.uint32)
    value = m
    outside = m >= 0
    while tl.max(outside.to(tl.int32), axis=0) != 0:
        left, right = (value >> shift).to(tl.uint32), value.to(tl.uint32) & mask
        for r in tl.static_range(6):
            h = right ^ (a0 if r == 0 else a1 if r == 1 else a2 if r == 2 else a3 if r == 3 else a4 if r == 4 else a5)
            h = (h ^ (h >> 16)) * tl.full([1], 0x85EBCA6B, tl.uint32)
            h = (h ^ (h >> 13)) * tl.full([1], 0xC2B2AE35, tl.uint32)
            left, right = right, left ^ ((h ^ (h >> 16)) & mask)
        value = tl.where(outside, (left.to(tl.int64) << shift) | right.to(tl.int64), value)
        outside = value >= numel
    return value


@triton.jit
def _sweep(
    x, add, table, tiles, status, decay, add_scale, HAS_ADD: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    _, tile, x_at, add_at, numel, _, _, _, _, entry = row_of(table, tiles)
    first = tile * TILE
    i = tl.arange(0, TILE)
    mask = i < numel - first
    y, bad, alive = load_y(
        x, add, x_at + first, tl.where(add_at < 0, -1, add_at + first), i, mask, decay, add_scale, True, HAS_ADD
    )
    store(x + x_at + first + i, y, mask)
    flag(status, 0, bad)
    flag(status, 1 + entry, alive)


@triton.jit(do_not_specialize=["step"])
def _send(
    x, add, wire, table, tiles, firsts, status, gain, rest, decay, add_scale, step,
    HAS_ADD: tl.constexpr, KEEP: tl.constexpr, WORDS: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    row, part, x_at, add_at, numel, wire_at, offset, key, k, _ = row_of(table, tiles)
    m = part * KEPT + tl.arange(0, KEPT)
    mask = m < k
    i = permuted(tl.where(mask, m, 0), numel, key, offset, step)
    y, _, _ = load_y(x, add, x_at, add_at, i, mask, decay, add_scale, True, HAS_ADD)
    value = y * tl.load(gain + row)
    overflow = mask & (finite(value) == 0)
    value = tl.where(finite(value), value, 0.0)
    put32(wire, wire_at + 4 * m, value, mask, WORDS)
    if KEEP:
        tl.store(rest + tl.load(firsts + row) + m, y - value, mask=mask)
    else:
        tl.store(x + x_at + i, y - value, mask=mask)
    flag(status, 0, overflow)


@triton.jit(do_not_specialize=["step"])
def _put_back(x, table, tiles, firsts, rest, step, KEPT: tl.constexpr):
    row, part, x_at, _, numel, _, offset, key, k, _ = row_of(table, tiles)
    m = part * KEPT + tl.arange(0, KEPT)
    mask = m < k
    i = permuted(tl.where(mask, m, 0), numel, key, offset, step)
    store(x + x_at + i, tl.load(rest + tl.load(firsts + row) + m, mask=mask, other=0.0), mask)


@triton.jit
def _clear(out, table, tiles, TILE: tl.constexpr):
    _, tile, x_at, _, numel, _, _, _, _, _ = row_of(table, tiles)
    i = tl.arange(0, TILE)
    store(out + x_at + tile * TILE + i, tl.zeros([TILE], tl.float32), i < numel - tile * TILE)


@triton.jit(do_not_specialize=["step"])
def _add(
    wires, messages, stride, table, tiles, skip, out, scale, step, WORDS: tl.constexpr, KEPT: tl.constexpr
):  # fmt: skip
    _, part, x_at, _, numel, wire_at, offset, key, k, entry = row_of(table, tiles)
    if tl.load(skip + entry) == 0:
        m = part * KEPT + tl.arange(0, KEPT)
        mask = m < k
        i = permuted(tl.where(mask, m, 0), numel, key, offset, step)
        total = tl.load(out + x_at + i, mask=mask, other=0.0).to(tl.float32)
        message = wires
        for _message in range(messages):
            total += take_f32(message, wire_at + 4 * m, mask, WORDS) * scale
            message += stride
        store(out + x_at + i, total, mask)


@kernel("randk_encode")
def randk_encode(x, add, wire, table, status, decay, add_scale, gain, step):
    work.kept(table, ("randk_encode", "k"), lambda: _check_k("randk_encode", table, decoding=False))
    work.check_encode("randk_encode", x, add, wire, table, status, section)
    device, has_add = wire.device, add is not None
    w, kept, gain = work.tiles(table, TILE, device), _kept(table, device), work.on(gain, device)
    narrow = x.dtype is not torch.float32
    rest = scratch("rand-k rest", kept.count, torch.float32, device) if narrow else None

    def send(add: Tensor | None, decay: float, add_scale: float) -> None:
        t = kept.tiles
        launch(
            _send, t.programs, x, add, wire, w.table, t.tiles, kept.firsts, status, gain, rest, decay, add_scale, step,
            HAS_ADD=add is not None, KEEP=narrow, WORDS=work.words(wire), KEPT=KEPT,
        )  # fmt: skip

    if narrow:
        send(add, decay, add_scale)
    launch(
        _sweep, w.programs, x, add, w.table, w.tiles, status, decay, add_scale,
        HAS_ADD=has_add, TILE=TILE, num_warps=8,
    )  # fmt: skip
    if narrow:
        t = kept.tiles
        launch(_put_back, t.programs, x, w.table, t.tiles, kept.firsts, rest, step, KEPT=KEPT)
    else:
        send(None, 1.0, 1.0)


@kernel("randk_decode")
def randk_decode(wires, table, skip, out, scale, accumulate, step):
    work.kept(table, ("randk_decode", "k"), lambda: _check_k("randk_decode", table, decoding=True))
    work.check_decode("randk_decode", wires, table, skip, out, section)
    if not accumulate:
        w = work.tiles(table, TILE, out.device, decoding=True)
        launch(_clear, w.programs, out, w.table, w.tiles, TILE=TILE)
    t = _kept(table, out.device, decoding=True).tiles
    launch(
        _add, t.programs, wires, wires.shape[0], wires.stride(0), t.table, t.tiles, skip, out, scale, step,
        WORDS=work.words(wires), KEPT=KEPT,
    )  # fmt: skip
