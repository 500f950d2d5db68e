"""PowerSGD's products and reconstruction. Formulas and tables: ``ops/reference/lowrank.py``.

M is cut into tiles; one launch treats those of all matrices. It makes a tile of M, which stays in registers for every
line of the factor, and writes the tile's share of the product; a second launch adds up the shares, in fp64 and in one
order. So the products do not depend on the device, but differ from the reference's, as other kernels' do: by no more
than 2^-20 of the sum of the terms' magnitudes. M, the flags and the reconstruction have the reference's bits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.lowrank import matrices
from ..scratch import scratch
from . import work
from .common import finite, flag, store
from .launch import launch
from .registry import kernel

PROJECT, BACKPROJECT, REBUILD = (16, 256), (64, 64), (16, 256)  # rows and columns of a tile
SHARES, ENTRIES = 32, 64  # of a program that adds up: shares at a time, numbers of a factor


@triton.jit
def matrix_of(table, tiles, R: tl.constexpr, C: tl.constexpr):
    """This program's tile: (line of the table, rows, columns, rank, row, column, offsets, mask); elements of M are at
    the offsets from the tile's first one, which is at row ``row`` and column ``column``."""
    p = tl.program_id(0).to(tl.int64)
    line = table + 8 * tl.load(tiles + 3 * p).to(tl.int64)
    row = tl.load(tiles + 3 * p + 1).to(tl.int64) * R
    column = tl.load(tiles + 3 * p + 2).to(tl.int64) * C
    rows, columns, rank = tl.load(line + 2), tl.load(line + 3), tl.load(line + 4)
    i, j = tl.arange(0, R)[:, None], tl.arange(0, C)[None, :]
    return line, rows, columns, rank, row, column, i * columns + j, (i < rows - row) & (j < columns - column)


@triton.jit
def _product(
    residual, gradient, given, made, shares, table, tiles, places, status, scale,
    ADD: tl.constexpr, FORWARD: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    line, rows, columns, rank, row, column, offsets, mask = matrix_of(table, tiles, R, C)
    first = row * columns + column
    x = residual + tl.load(line) + first + offsets
    y = tl.load(x, mask=mask, other=0.0)
    if ADD:
        added = tl.load(gradient + tl.load(line + 1) + first + offsets, mask=mask, other=0.0).to(tl.float32)
        sums = y + added * scale
        bad = (finite(sums) == 0) & mask
        y = tl.where(bad, y, sums)
        tl.store(x, y, mask=mask)
        flag(status, 0, bad)
        flag(status, 1 + tl.load(line + 7), added != 0)
    i, j = tl.arange(0, R), tl.arange(0, C)
    place = tl.load(places + tl.load(tiles + 3 * tl.program_id(0).to(tl.int64)))
    alone = place < 0  # M has no other tile that this one is to be added to
    if FORWARD:
        share = tl.maximum(place, 0) + column // C * rank * rows + row
        whole = tl.load(line + 5) + row
        given += tl.load(line + 6) + column
        inside = i < rows - row
    else:
        share = tl.maximum(place, 0) + row // R * rank * columns + column
        whole = tl.load(line + 6) + column
        given += tl.load(line + 5) + row
        inside = j < columns - column
    for k in range(rank):
        if FORWARD:
            v = tl.load(given + k * columns + j, mask=j < columns - column, other=0.0)
            s = tl.sum(y * v[None, :], axis=1)
            at = k * rows + i
        else:
            v = tl.load(given + k * rows + i, mask=i < rows - row, other=0.0)
            s = tl.sum(y * v[:, None], axis=0)
            at = k * columns + j
        tl.store(made + whole + at, s, mask=inside & alone)
        tl.store(shares + share + at, s, mask=inside & (alone == 0))


@triton.jit
def _add(
    made, shares, table, tiles, places,
    FORWARD: tl.constexpr, T: tl.constexpr, SHARES: tl.constexpr, ENTRIES: tl.constexpr,
):  # fmt: skip
    p = tl.program_id(0).to(tl.int64)
    matrix = tl.load(tiles + 2 * p).to(tl.int64)
    first = tl.load(tiles + 2 * p + 1).to(tl.int64) * ENTRIES
    line = table + 8 * matrix
    rows, columns, rank = tl.load(line + 2), tl.load(line + 3), tl.load(line + 4)
    if FORWARD:
        numel, count, whole = rank * rows, (columns + T - 1) // T, tl.load(line + 5)
    else:
        numel, count, whole = rank * columns, (rows + T - 1) // T, tl.load(line + 6)
    share = shares + tl.load(places + matrix) + first
    c, e = tl.arange(0, SHARES)[:, None], tl.arange(0, ENTRIES)
    total = tl.zeros([ENTRIES], tl.float64)
    for begin in range(0, count, SHARES):
        mask = (begin + c < count) & (e[None, :] < numel - first)
        part = tl.load(share + (begin + c) * numel + e[None, :], mask=mask, other=0.0)
        total += tl.sum(part.to(tl.float64), axis=0)
    tl.store(made + whole + first + e, total.to(tl.float32), mask=e < numel - first)


@triton.jit
def lines_product(p, q, rank, rows, columns, row, column, R: tl.constexpr, C: tl.constexpr):
    """A tile of P Q^T, the terms added in order."""
    i, j = tl.arange(0, R), tl.arange(0, C)
    total = tl.zeros([R, C], tl.float32)
    for k in range(rank):
        left = tl.load(p + k * rows + row + i, mask=i < rows - row, other=0.0)
        right = tl.load(q + k * columns + column + j, mask=j < columns - column, other=0.0)
        term = left[:, None] * right[None, :]
        total = tl.where(k == 0, term, total + term)
    return total


@triton.jit
def _rebuild(
    residual, out, p, q, p_sent, q_sent, table, tiles, skip, scale, sign,
    OUT: tl.constexpr, SAME: tl.constexpr, ACCUMULATE: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    line, rows, columns, rank, row, column, offsets, mask = matrix_of(table, tiles, R, C)
    first = row * columns + column
    p_at, q_at = tl.load(line + 5), tl.load(line + 6)
    used = tl.load(skip + tl.load(line + 7)) == 0
    if OUT:
        bucket = tl.load(line + 1)
        to = out + tl.maximum(bucket, 0) + first + offsets
        there = mask & (bucket >= 0)
    if used:
        x = residual + tl.load(line) + first + offsets
        old = tl.load(x, mask=mask, other=0.0)
        sent = lines_product(p_sent + p_at, q_sent + q_at, rank, rows, columns, row, column, R, C)
        if OUT:
            mean = sent
            if not SAME:
                mean = lines_product(p + p_at, q + q_at, rank, rows, columns, row, column, R, C)
            mean = mean * scale
            if ACCUMULATE:
                mean = tl.load(to, mask=there, other=0.0).to(tl.float32) + mean
            store(to, mean, there)
        tl.store(x, old - sent * sign, mask=mask)
    elif OUT and not ACCUMULATE:
        store(to, tl.zeros([R, C], tl.float32), there)


class _Tiles(NamedTuple):
    """On the device: the table and the tiles (matrix, row, column). ``places``: where a matrix's shares begin, -1 where
    it has one alone; ``sums``: the programs that add up (matrix, tile)."""

    table: Tensor
    tiles: Tensor
    places: Tensor
    sums: Tensor
    shares: int


def _repeat(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(0, 0), (0, 1), ... (0, counts[0] - 1), (1, 0), ..."""
    which = np.repeat(np.arange(len(counts)), counts)
    return which, np.arange(len(which)) - (np.cumsum(counts) - counts)[which]


def _tiles(table: Tensor, shape: tuple[int, int], forward: bool, device: torch.device) -> _Tiles:
    def make() -> _Tiles:
        lines = table.cpu().numpy()
        rows, columns, rank = lines[:, 2], lines[:, 3], lines[:, 4]
        high, wide = -(-rows // shape[0]), -(-columns // shape[1])
        which, inside = _repeat(high * wide)
        tiles = np.stack((which, inside // wide[which], inside % wide[which]), 1)
        if max(len(tiles), tiles.max(initial=0)) >= 2**31:
            raise ValueError(f"compcomm: {len(tiles)} tiles; a launch has fewer than 2^31")
        made, parts = (rank * rows, wide) if forward else (rank * columns, high)
        room = np.where(parts > 1, parts * made, 0)
        places = np.where(parts > 1, np.cumsum(room) - room, -1)
        sums = np.stack(_repeat(np.where(parts > 1, -(-made // ENTRIES), 0)), 1)
        sent = [torch.from_numpy(a).to(device, non_blocking=True) for a in (tiles.astype(np.int32), places,
                                                                            sums.astype(np.int32))]  # fmt: skip
        return _Tiles(work.on(table, device), *sent, int(room.sum()))

    return work.kept(table, ("matrices", shape, forward, device), make)


def _check(op: str, residual: Tensor, bucket: Tensor | None, p: Tensor, q: Tensor, table: Tensor, entries: int) -> None:
    """The reference's check of the matrices, once per sizes."""

    def make() -> None:
        matrices(op, residual, bucket, p, q, table.cpu(), entries, out=op == "lowrank_reconstruct")

    key = (op, residual.numel(), -1 if bucket is None else bucket.numel(), p.numel(), q.numel(), entries)
    work.kept(table, key, make)


def _multiply(op: str, residual, gradient, p, q, table, status, scale, forward: bool, shape: tuple[int, int]) -> None:
    _check(op, residual, gradient, p, q, table, status.numel() - 1)
    t = _tiles(table, shape, forward, residual.device)
    given, made = (q, p) if forward else (p, q)
    shares = scratch("lowrank shares", t.shares, torch.float32, residual.device)
    launch(
        _product, len(t.tiles), residual, gradient, given, made, shares, t.table, t.tiles, t.places, status, scale,
        ADD=gradient is not None, FORWARD=forward, R=shape[0], C=shape[1],
    )  # fmt: skip
    launch(
        _add, len(t.sums), made, shares, t.table, t.sums, t.places,
        FORWARD=forward, T=shape[1 if forward else 0], SHARES=SHARES, ENTRIES=ENTRIES,
    )  # fmt: skip


@kernel("lowrank_project")
def project(residual, gradient, p, q, table, status, scale):
    _multiply("lowrank_project", residual, gradient, p, q, table, status, scale, True, PROJECT)


@kernel("lowrank_backproject")
def backproject(residual, gradient, p, q, table, status, scale):
    _multiply("lowrank_backproject", residual, gradient, p, q, table, status, scale, False, BACKPROJECT)


@kernel("lowrank_reconstruct")
def reconstruct(residual, out, p, q, p_sent, q_sent, table, skip, scale, accumulate, sign):
    _check("lowrank_reconstruct", residual, out, p, q, table, skip.numel())
    t = _tiles(table, REBUILD, True, residual.device)
    same: Any = p.data_ptr() == p_sent.data_ptr() and q.data_ptr() == q_sent.data_ptr()
    launch(
        _rebuild, len(t.tiles), residual, out, p, q, p_sent, q_sent, t.table, t.tiles, skip, scale, sign,
        OUT=out is not None, SAME=same, ACCUMULATE=accumulate, R=REBUILD[0], C=REBUILD[1],
    )  # fmt: skip
