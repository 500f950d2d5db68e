"""``axpby``, ``add_correction`` and ``nonzero_segments``: what schemes do to their memory. Formulas and table:
``ops/reference/segment_ops.py``.

Tensors of fp32, bfloat16, float16 (computed in fp32) or, all of them, fp64. Rows that meet, where a later one must find
what an earlier one left, are launched one after the other; all others at once.
"""

from __future__ import annotations

from ctypes import c_float
from struct import pack, unpack

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.segment_ops import spans
from . import work
from .common import finite, flag, store
from .launch import launch
from .registry import kernel

TILE = 4096
WARPS = 8
LIFE = 8192  # elements to a program that looks for life


@triton.jit
def span_of(table, tiles, ALIGNED: tl.constexpr, TILE: tl.constexpr):
    """This program's elements: (row, to, from, left, index), int64 scalars; ``to`` and ``from`` are those of the tile,
    ``left`` what the row has from there on."""
    p = tl.program_id(0).to(tl.int64)
    row = tl.load(tiles + 2 * p).to(tl.int64)
    first = tl.load(tiles + 2 * p + 1).to(tl.int64) * TILE
    line = table + 4 * row
    to, start, left = tl.load(line) + first, tl.load(line + 1) + first, tl.load(line + 2) - first
    if ALIGNED:
        to, start, left = tl.multiple_of(to, 4), tl.multiple_of(start, 4), tl.multiple_of(left, 4)
    return row, to, start, left, tl.load(line + 3)


@triton.jit
def number(value, DOUBLE: tl.constexpr):
    """What ``factor`` made of a factor."""
    if DOUBLE:
        return value.to(tl.int64).to(tl.float64, bitcast=True)
    else:
        return value


@triton.jit
def wide(x, DOUBLE: tl.constexpr):
    """As it is computed with: fp32 unless it is fp64."""
    if DOUBLE:
        return x
    else:
        return x.to(tl.float32)


@triton.jit
def _axpby(
    to, source, beta, table, tiles, status, alpha,
    READ: tl.constexpr, DOUBLE: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row, to_at, from_at, left, entry = span_of(table, tiles, ALIGNED, TILE)
    i = tl.arange(0, TILE)
    mask = i < left
    x = wide(tl.load(source + from_at + i, mask=mask, other=0.0), DOUBLE)
    target = to + to_at + i
    if READ:
        old = wide(tl.load(target, mask=mask, other=0.0), DOUBLE)
    bad = finite(x) == 0
    y = tl.where(bad, 0.0, x) * wide(tl.load(beta + row), DOUBLE)
    if READ:
        y = old * number(alpha, DOUBLE) + y
    store(target, y, mask)
    flag(status, 0, bad)
    flag(status, 1 + entry, x != 0)


@triton.jit
def _add_correction(
    x, error, estimate, table, tiles, status, eta, scale,
    DOUBLE: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    _, to_at, from_at, left, _ = span_of(table, tiles, ALIGNED, TILE)
    i = tl.arange(0, TILE)
    mask = i < left
    target = x + to_at + i
    own = wide(tl.load(target, mask=mask, other=0.0), DOUBLE)
    e = wide(tl.load(error + from_at + i, mask=mask, other=0.0), DOUBLE)
    h = wide(tl.load(estimate + from_at + i, mask=mask, other=0.0), DOUBLE)
    bad = finite(own) == 0
    store(target, tl.where(bad, 0.0, own) + (e * number(eta, DOUBLE) - h) * number(scale, DOUBLE), mask)
    flag(status, 0, bad)


@triton.jit
def _nonzero_segments(source, table, tiles, status, ALIGNED: tl.constexpr, TILE: tl.constexpr):
    _, _, from_at, left, entry = span_of(table, tiles, ALIGNED, TILE)
    # Nearly always said by the first tiles of the row: most of it need not be read.
    old = tl.load(status + 1 + entry, cache_modifier=".cg")
    if (old & 1) == 0:
        i = tl.arange(0, TILE)
        x = tl.load(source + from_at + i, mask=i < left, other=0.0)
        flag(status, 1 + entry, x != 0)


def factor(value: float, double: bool) -> float | int:
    """A factor for a kernel: an fp32 number, or the bits of an fp64 one (which no launch takes)."""
    return unpack("q", pack("d", value))[0] if double else c_float(value).value


def double(op: str, *tensors: Tensor) -> bool:
    """Whether these are fp64, all of them."""
    kinds = {t.dtype for t in tensors}
    if kinds == {torch.float64}:
        return True
    if not kinds <= {torch.float32, torch.bfloat16, torch.float16}:
        names = ", ".join(sorted(map(str, kinds)))
        raise TypeError(f"compcomm.{op}: tensors are {names}; kernels know fp32, bfloat16 and float16, or fp64 alone")
    return False


def check(op: str, to: Tensor | None, source: Tensor, table: Tensor, status: Tensor | None) -> None:
    """The reference's check of the rows, once per sizes."""

    def make() -> None:
        spans(op, to, source, table.cpu(), status)

    key = (op, -1 if to is None else to.numel(), source.numel(), -1 if status is None else status.numel())
    work.kept(table, key, make)


def aligned(table: Tensor) -> bool:
    """Whether all rows begin and end at multiples of four elements: they are then read four at a time."""
    return work.kept(table, "aligned spans", lambda: not bool((table[:, :3] % 4).any()))


def _distance(to: Tensor, source: Tensor) -> int | None:
    """Elements from the begin of ``to`` to that of ``source``, where they share memory."""
    size, a, b = to.itemsize, to.data_ptr(), source.data_ptr()
    if source.itemsize != size or a >= b + size * source.numel() or b >= a + size * to.numel():
        return None
    return (b - a) // size


def _meet(table: Tensor, distance: int | None) -> bool:
    """Whether a row writes where another one writes or reads."""
    lines = table.cpu().numpy()
    lines = lines[lines[:, 2] > 0]
    begin, end = lines[:, 0], lines[:, 0] + lines[:, 2]
    order = np.argsort(begin, kind="stable")
    if (begin[order][1:] < end[order][:-1]).any():
        return True
    if distance is None or (lines[:, 1] + distance == begin).all():
        return False
    read = lines[:, 1] + distance
    last = read + lines[:, 2]
    return any(
        ((begin < last[r]) & (end > read[r]) & (np.arange(len(lines)) != r)).any() for r in range(len(lines))
    )  # fmt: skip


def _turns(to: Tensor, source: Tensor, table: Tensor) -> list[work.Work]:
    """The launches: one, or one per row where rows meet."""
    distance = _distance(to, source)

    def make() -> list[work.Work]:
        w = work.tiles(table, TILE, to.device)
        if not _meet(table, distance):
            return [w]
        counts = [-(-n // TILE) for n in table[:, 2].tolist()]
        return [work.Work(w.table, part, len(part)) for part in w.tiles.split(counts)]

    return work.kept(table, ("turns", distance, to.device), make)


@kernel("axpby")
def axpby(to: Tensor, source: Tensor, table: Tensor, beta: Tensor, status: Tensor, alpha: float) -> None:
    check("axpby", to, source, table, status)
    wide_ = double("axpby", to, source, beta)
    for w in _turns(to, source, table):
        launch(
            _axpby, w.programs, to, source, work.on(beta, to.device), w.table, w.tiles, status, factor(alpha, wide_),
            READ=alpha != 0.0, DOUBLE=wide_, ALIGNED=aligned(table), TILE=TILE, num_warps=WARPS,
        )  # fmt: skip


@kernel("add_correction")
def add_correction(
    x: Tensor, error: Tensor, estimate: Tensor, table: Tensor, status: Tensor, eta: float, scale: float
) -> None:
    check("add_correction", x, error, table, status)
    wide_ = double("add_correction", x, error, estimate)
    for w in _turns(x, error, table):
        launch(
            _add_correction, w.programs, x, error, estimate, w.table, w.tiles, status, factor(eta, wide_),
            factor(scale, wide_),
            DOUBLE=wide_, ALIGNED=aligned(table), TILE=TILE, num_warps=WARPS,
        )  # fmt: skip


@kernel("nonzero_segments")
def nonzero_segments(source: Tensor, table: Tensor, status: Tensor) -> None:
    check("nonzero_segments", None, source, table, status)
    double("nonzero_segments", source)
    w = work.tiles(table, LIFE, source.device)
    launch(
        _nonzero_segments,
        w.programs,
        source,
        w.table,
        w.tiles,
        status,
        ALIGNED=aligned(table),
        TILE=LIFE,
        num_warps=WARPS,
    )
