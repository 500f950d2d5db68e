"""The Gaussian sketch. Formula: ``ops/reference/sketch.py``. For study: a row costs numel * k products, twice, and as
many random numbers, one Philox call each."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.sketch import section
from . import work
from .common import dither_each, finish, fold_lanes, put32, row_of, store, take_f32
from .launch import launch
from .registry import kernel
from .sketch import TILE, checked_k, take_input

SUMS = 16


@triton.jit
def _matrix(j, i, quantiles, step, key, mask):
    """t_ij of sums ``i`` and elements ``j`` (int64) of the parameter."""
    return tl.load(quantiles + dither_each(j, step, i, 4, key), mask=mask, other=0.0)


@triton.jit(do_not_specialize=["step"])
def _sum(
    wire, table, tiles, bases, refused, gain, factors, quantiles, y_all, step,
    WORDS: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    row, tile, _, _, numel, wire_at, offset, key, k, _ = row_of(table, tiles)
    i = tile * SUMS + tl.arange(0, SUMS)
    lanes = tl.zeros([SUMS, 16], tl.float32)
    value = tl.zeros([SUMS], tl.float32)
    if tl.load(refused + row) == 0:
        base = tl.load(bases + row)
        nothing = tl.zeros([SUMS, 16], tl.int64)
        for first in range(0, numel, 16):
            e = first + tl.arange(0, 16)[None, :] + nothing
            mask = e < numel
            t = _matrix(offset + e, i[:, None] + nothing, quantiles, step, key, mask)
            lanes += t * tl.load(y_all + base + e, mask=mask, other=0.0)
        value = fold_lanes(lanes) * (tl.load(factors + row) * tl.load(gain + row))
    put32(wire, wire_at + 4 * i, value, i < k, WORDS)


@triton.jit
def _values(
    message, wire_at, j, k, factor, quantiles, step, key, mask, WORDS: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    """The decoded elements ``j`` of one message."""
    total = tl.zeros([TILE], tl.float32)
    for i in range(k):
        sent = take_f32(message, wire_at + 4 * i, True, WORDS)
        total += _matrix(j, i, quantiles, step, key, mask) * sent
    return total * factor


@triton.jit(do_not_specialize=["step"])
def _leave(
    x, wire, table, tiles, bases, refused, factors, quantiles, y_all, step,
    WORDS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row, tile, x_at, _, numel, wire_at, offset, key, k, _ = row_of(table, tiles)
    if tl.load(refused + row) == 0:
        first = tile * TILE
        i = tl.arange(0, TILE)
        mask = i < numel - first
        v = _values(
            wire, wire_at, offset + first + i, k, tl.load(factors + row), quantiles, step, key, mask, WORDS, TILE
        )
        y = tl.load(y_all + tl.load(bases + row) + first + i, mask=mask, other=0.0)
        store(x + x_at + first + i, y - v, mask)


@triton.jit(do_not_specialize=["step"])
def _decode(
    wires, messages, stride, table, tiles, skip, out, factors, quantiles, scale, step,
    ACCUMULATE: tl.constexpr, WORDS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row, tile, x_at, _, numel, wire_at, offset, key, k, entry = row_of(table, tiles)
    first = tile * TILE
    i = tl.arange(0, TILE)
    mask = i < numel - first
    total = tl.zeros([TILE], tl.float32)
    if tl.load(skip + entry) == 0:
        factor = tl.load(factors + row)
        message = wires
        for m in range(messages):
            v = _values(message, wire_at, offset + first + i, k, factor, quantiles, step, key, mask, WORDS, TILE)
            total = tl.where(m == 0, v, total + v)
            message += stride
        finish(out, x_at + first, i, mask, total, scale, ACCUMULATE)
    elif ACCUMULATE == 0:
        store(out + x_at + first + i, total, mask)


def _factors(table: Tensor, device: torch.device) -> Tensor:
    """fl(k^-1/2) of every row."""

    def make() -> Tensor:
        return torch.tensor([1.0 / math.sqrt(max(k, 1)) for k in table[:, 6].tolist()], dtype=torch.float32).to(device)

    return work.kept(table, ("gauss", device), make)


@kernel("gauss_encode")
def gauss_encode(x, add, wire, table, status, decay, add_scale, gain, quantiles, step):
    checked_k("gauss_encode", table, False)
    work.check_encode("gauss_encode", x, add, wire, table, status, section)
    device, words = x.device, work.words(wire)
    given = take_input(x, add, table, status, decay, add_scale)
    factors, quantiles = _factors(table, device), work.on(quantiles, device)
    s, w = work.tiles(table, SUMS, device, column=6), given.tiles
    launch(
        _sum, s.programs, wire, s.table, s.tiles, given.bases, given.refused, work.on(gain, device), factors, quantiles,
        given.y, step, WORDS=words, SUMS=SUMS,
    )  # fmt: skip
    launch(
        _leave, w.programs, x, wire, w.table, w.tiles, given.bases, given.refused, factors, quantiles, given.y, step,
        WORDS=words, TILE=TILE,
    )  # fmt: skip


@kernel("gauss_decode")
def gauss_decode(wires, table, skip, out, scale, accumulate, quantiles, step):
    checked_k("gauss_decode", table, True)
    work.check_decode("gauss_decode", wires, table, skip, out, section)
    device = out.device
    w = work.tiles(table, TILE, device, decoding=True)
    launch(
        _decode, w.programs, wires, wires.shape[0], wires.stride(0), w.table, w.tiles, skip, out,
        _factors(table, device), work.on(quantiles, device), scale, step,
        ACCUMULATE=accumulate, WORDS=work.words(wires), TILE=TILE,
    )  # fmt: skip
