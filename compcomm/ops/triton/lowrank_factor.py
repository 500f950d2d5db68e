"""The factors of PowerSGD: Gram-Schmidt and fresh lines. Formulas and table: ``ops/reference/lowrank.py``.

Both have the reference's bits, on which all ranks must agree. Gram-Schmidt adds in order, eight sums side by side, so a
factor is one program's: products are made in parallel, and then added from the first-level cache.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.lowrank import KEPT, STREAM, factors
from ..scratch import scratch
from . import work
from .common import dither_run
from .launch import launch
from .registry import kernel

TILE = 1024
LANES = 8
UNROLLED = 32
STRIDE = LANES * UNROLLED  # lines are padded to a multiple, with zeros


@triton.jit
def add_in_order(products, padded, LANES: tl.constexpr, UNROLLED: tl.constexpr):
    """Their sum: eight interleaved sums, each in order, then halved 4, 2, 1 apart."""
    tl.debug_barrier()
    lanes = tl.zeros([LANES], tl.float64)
    lane = tl.arange(0, LANES)
    for begin in range(0, padded, LANES * UNROLLED):
        for u in tl.static_range(UNROLLED):
            lanes += tl.load(products + begin + u * LANES + lane)
    tl.debug_barrier()
    lanes = tl.sum(tl.reshape(lanes, [2, 4]), axis=0)
    lanes = tl.sum(tl.reshape(lanes, [2, 2]), axis=0)
    return tl.sum(lanes, axis=0)


@triton.jit
def _orthonormal(
    factor, table, places, room,
    KEPT: tl.constexpr, LANES: tl.constexpr, UNROLLED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    line = factor + tl.load(table + 8 * row)
    numel, count = tl.load(table + 8 * row + 2), tl.load(table + 8 * row + 6)
    padded = tl.cdiv(numel, LANES * UNROLLED) * (LANES * UNROLLED)
    products = room + tl.load(places + row)
    done = products + padded
    i = tl.arange(0, TILE)
    a = done
    for k in range(count):
        for begin in range(0, padded, TILE):
            x = tl.load(line + begin + i, mask=begin + i < numel, other=0.0).to(tl.float64)
            tl.store(a + begin + i, x, mask=begin + i < padded)
            tl.store(products + begin + i, x * x, mask=begin + i < padded)
        before = add_in_order(products, padded, LANES, UNROLLED)
        if k > 0:
            for begin in range(0, padded, TILE):
                x = tl.load(a + begin + i, mask=begin + i < padded, other=0.0)
                y = tl.load(done + begin + i, mask=begin + i < padded, other=0.0)
                tl.store(products + begin + i, x * y, mask=begin + i < padded)
        b = done
        for j in range(k):
            c = add_in_order(products, padded, LANES, UNROLLED)
            for begin in range(0, padded, TILE):
                mask = begin + i < padded
                x = tl.load(a + begin + i, mask=mask, other=0.0)
                x = x - c * tl.load(b + begin + i, mask=mask, other=0.0)
                y = tl.load(b + padded + begin + i, mask=mask & (j < k - 1), other=0.0)
                tl.store(a + begin + i, x, mask=mask)
                tl.store(products + begin + i, x * tl.where(j < k - 1, y, x), mask=mask)
            b += padded
        after = before
        if k > 0:
            after = add_in_order(products, padded, LANES, UNROLLED)
        size = tl.sqrt(after)  # of fp64, and so is the division: rounded to the nearest
        for begin in range(0, padded, TILE):
            x = tl.load(a + begin + i, mask=begin + i < padded, other=0.0) / size
            x = tl.where(after > before * KEPT, x, 0.0)
            tl.store(a + begin + i, x, mask=begin + i < padded)
            tl.store(line + begin + i, x.to(tl.float32), mask=begin + i < numel)
        tl.debug_barrier()
        a += padded
        line += numel


@triton.jit(do_not_specialize=["step"])
def _refresh(factor, table, tiles, quantiles, step, STREAM: tl.constexpr, TILE: tl.constexpr):
    p = tl.program_id(0).to(tl.int64)
    row, k = tl.load(tiles + 2 * p).to(tl.int64), tl.load(tiles + 2 * p + 1).to(tl.int64)
    numel, key = tl.load(table + 8 * row + 2), tl.load(table + 8 * row + 5)
    line = factor + tl.load(table + 8 * row) + k * numel
    i = tl.arange(0, TILE)
    zero = numel * 0  # int64 wherever it runs
    at = zero
    while at < numel:  # nearly always over after the first tile, far beyond the end
        x = tl.load(line + at + i, mask=at + i < numel, other=0.0)
        found = tl.max((x != 0).to(tl.int32), axis=0)
        at = tl.where(found != 0, numel + TILE, at + TILE)
    if at < numel + TILE:
        for begin in range(0, numel, TILE):
            number = dither_run(zero + begin, step, k, STREAM, key, TILE)
            tl.store(line + begin + i, tl.load(quantiles + number), mask=begin + i < numel)


def _check(op: str, factor: Tensor, table: Tensor) -> None:
    """The reference's check of the lines, once per size."""

    def make() -> None:
        factors(op, factor, table.cpu())

    work.kept(table, (op, factor.numel()), make)


def _places(table: Tensor, device: torch.device) -> tuple[Tensor, int]:
    """Where each factor's memory begins, products and lines in fp64, and how much there is."""

    def make() -> tuple[Tensor, int]:
        lines = table.cpu().numpy()
        room = -(-lines[:, 2] // STRIDE) * STRIDE * (lines[:, 6] + 1)
        places = torch.from_numpy(np.cumsum(room) - room)
        return places.to(device, non_blocking=True), int(room.sum())

    return work.kept(table, ("factors", device), make)


@kernel("lowrank_orthonormal")
def orthonormal(factor, table):
    _check("lowrank_orthonormal", factor, table)
    places, numel = _places(table, factor.device)
    room = scratch("lowrank lines", numel, torch.float64, factor.device)
    launch(
        _orthonormal, len(table), factor, work.on(table, factor.device), places, room,
        KEPT=KEPT, LANES=LANES, UNROLLED=UNROLLED, TILE=TILE,
    )  # fmt: skip


@kernel("lowrank_refresh")
def refresh(factor, table, quantiles, step):
    _check("lowrank_refresh", factor, table)
    w = work.tiles(table, 1, factor.device, column=6)
    launch(
        _refresh, w.programs, factor, w.table, w.tiles, work.on(quantiles, factor.device), step,
        STREAM=STREAM, TILE=TILE,
    )  # fmt: skip
