"""Rows of zeros. Bits and layout: ``ops/reference/zero_rows.py``."""

from __future__ import annotations

import triton
import triton.language as tl

from ..reference.zero_rows import lines
from . import work
from .common import row_of, store
from .launch import launch
from .registry import kernel

ROWS, WIDE, TILE = 32, 128, 4096


@triton.jit
def _mark(
    x, add, bits, table, tiles, HAS_X: tl.constexpr, HAS_ADD: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr
):
    """A program has 32 rows, and writes a word."""
    _, tile, x_at, add_at, numel, wire, lead, _, width, _ = row_of(table, tiles)
    j = tile * ROWS + tl.arange(0, ROWS)
    moved = tl.zeros([ROWS, WIDE], tl.int32)
    c = tl.arange(0, WIDE)
    for first in range(0, width, WIDE):
        i = j[:, None] * width + first + c[None, :] - lead
        mask = (first + c[None, :] < width) & (i >= 0) & (i < numel)
        if HAS_X:
            if x_at >= 0:
                moved |= (tl.load(x + x_at + i, mask=mask, other=0.0) != 0).to(tl.int32)
        if HAS_ADD:
            if add_at >= 0:
                moved |= (tl.load(add + add_at + i, mask=mask, other=0.0) != 0).to(tl.int32)
    zero = (tl.max(moved, axis=1) == 0) & (j * width < lead + numel)
    byte = tl.sum(tl.reshape(zero.to(tl.int32), [4, 8]) << tl.arange(0, 8)[None, :], axis=1)
    tl.store(bits + wire + tile * 4 + tl.arange(0, 4), byte.to(tl.uint8))


@triton.jit
def _clear(to, bits, table, tiles, TILE: tl.constexpr):
    _, tile, x_at, _, numel, wire, lead, _, width, _ = row_of(table, tiles)
    i = tile * TILE + tl.arange(0, TILE)
    mask = i < numel
    j = (lead + i) // width
    zero = (tl.load(bits + wire + j // 8, mask=mask, other=0).to(tl.int32) >> (j % 8).to(tl.int32)) & 1
    store(to + x_at + i, tl.zeros([TILE], tl.float32), mask & (zero != 0))


def _check(op, table, x, add, bits):
    sizes = tuple(-1 if t is None else t.numel() for t in (x, add, bits))
    work.kept(table, (op, *sizes), lambda: list(lines(op, table.cpu(), x, add, bits)))


@kernel("zero_rows_mark")
def zero_rows_mark(x, add, bits, table):
    _check("zero_rows_mark", table, x, add, bits)
    w = work.kept(table, ("words", bits.device), lambda: _words(table, bits.device))
    launch(
        _mark, w.programs, x, add, bits, w.table, w.tiles,
        HAS_X=x is not None, HAS_ADD=add is not None, ROWS=ROWS, WIDE=WIDE,
    )  # fmt: skip


def _words(table, device):
    """A program for every 32 rows of every line."""
    rows = table.cpu().clone()
    rows[:, 2] = -(-(rows[:, 2] + rows[:, 4]) // rows[:, 6])
    made = work.tiles(rows, ROWS, device)
    return made._replace(table=work.on(table, device))


@kernel("zero_rows_clear")
def zero_rows_clear(to, bits, table):
    _check("zero_rows_clear", table, to, None, bits)
    w = work.tiles(table, TILE, to.device, decoding=True)
    launch(_clear, w.programs, to, bits, w.table, w.tiles, TILE=TILE)
