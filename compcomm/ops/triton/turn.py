"""Matrices turned between buffers. Formula and table: ``ops/reference/turn.py``."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import work
from .launch import launch
from .registry import kernel

TILE = 4096


@triton.jit
def _turn(to, source, table, tiles, TILE: tl.constexpr):
    p = tl.program_id(0).to(tl.int64)
    line = table + 5 * tl.load(tiles + 2 * p).to(tl.int64)
    k = tl.load(tiles + 2 * p + 1).to(tl.int64) * TILE + tl.arange(0, TILE)
    rows, columns = tl.load(line + 3), tl.load(line + 4)
    size = rows * columns
    mask = k < tl.load(line + 2) * size
    inside = k % size
    start = k - inside + (inside % rows) * columns + inside // rows
    value = tl.load(source + tl.load(line + 1) + start, mask=mask)
    tl.store(to + tl.load(line) + k, value, mask=mask)


@kernel("turn")
def turn(to, source, table):
    w = work.kept(table, ("turned", to.device), lambda: _tiles(table, to.device))
    launch(_turn, w.programs, to, source, w.table, w.tiles, TILE=TILE)


def _tiles(table, device):
    numel = table.cpu()[:, 2:].prod(1, keepdim=True)
    made = work.tiles(torch.cat((table.cpu()[:, :2], numel), 1), TILE, device)
    return made._replace(table=work.on(table, device))
