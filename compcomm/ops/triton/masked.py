"""Rows chosen by a mark on the device. Formulas: ``ops/reference/masked.py``."""

from __future__ import annotations

import triton
import triton.language as tl

from . import work
from .common import finite, store
from .launch import launch
from .registry import kernel

TILE = 4096


@triton.jit
def _fill(to, table, tiles, marks, value, TILE: tl.constexpr):
    p = tl.program_id(0).to(tl.int64)
    row = table + 4 * tl.load(tiles + 2 * p).to(tl.int64)
    first = tl.load(tiles + 2 * p + 1).to(tl.int64) * TILE
    if tl.load(marks + tl.load(row + 3)) != 0:
        i = tl.arange(0, TILE)
        filled = tl.zeros([TILE], tl.float32) + value
        store(to + tl.load(row) + first + i, filled, i < tl.load(row + 2) - first)


@triton.jit
def _axpby(to, source, table, tiles, marks, alpha, beta, TILE: tl.constexpr):
    p = tl.program_id(0).to(tl.int64)
    row = table + 4 * tl.load(tiles + 2 * p).to(tl.int64)
    first = tl.load(tiles + 2 * p + 1).to(tl.int64) * TILE
    if tl.load(marks + tl.load(row + 3)) != 0:
        i = tl.arange(0, TILE)
        mask = i < tl.load(row + 2) - first
        at = to + tl.load(row) + first + i
        given = tl.load(source + tl.load(row + 1) + first + i, mask=mask, other=0.0)
        old = tl.load(at, mask=mask, other=0.0)
        if to.dtype.element_ty == tl.float64:
            given = given.to(tl.float64)
            given = tl.where(tl.abs(given) < float("inf"), given, 0.0)
            tl.store(at, old * alpha + given * beta, mask=mask)
        else:
            given = given.to(tl.float32)
            given = tl.where(finite(given), given, 0.0)
            store(at, old.to(tl.float32) * alpha + given * beta, mask)


@kernel("fill_masked")
def fill_masked(to, table, marks, value):
    w = work.tiles(table, TILE, to.device)
    launch(_fill, w.programs, to, w.table, w.tiles, marks, value, TILE=TILE)


@kernel("axpby_masked")
def axpby_masked(to, source, table, marks, alpha, beta):
    w = work.tiles(table, TILE, to.device)
    launch(_axpby, w.programs, to, source, w.table, w.tiles, marks, alpha, beta, TILE=TILE)
