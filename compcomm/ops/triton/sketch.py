"""What both sketches share: the input, and rows that are refused. Formulas: ``ops/reference/sketch.py``.

A row with a number of 2^64 or more is sent as zeros and stays in x. That is known after the first pass over x and add,
which leaves y in x and, with its full precision, in scratch memory.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.sketch import check_k
from ..scratch import scratch
from . import work
from .butterflies import is_small, size_bits
from .common import flag, load_y, row_of, store
from .launch import launch

TILE = 1024
CHUNK = 1024


class Input(NamedTuple):
    """``tiles``: of elements. ``bases``, ``starts`` [rows + 1]: elements, tiles of all rows before. ``y``: every
    element, row by row. ``refused`` [rows]: 1 where a row is too large."""

    tiles: work.Work
    bases: Tensor
    starts: Tensor
    y: Tensor
    refused: Tensor


@triton.jit
def _take(
    x, add, table, tiles, bases, y_all, large, status, decay, add_scale, HAS_ADD: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    row, tile, x_at, add_at, numel, _, _, _, _, entry = row_of(table, tiles)
    first = tile * TILE
    i = tl.arange(0, TILE)
    mask = i < numel - first
    y, bad, alive = load_y(
        x, add, x_at + first, tl.where(add_at < 0, -1, add_at + first), i, mask, decay, add_scale, True, HAS_ADD
    )
    store(x + x_at + first + i, y, mask)
    tl.store(y_all + tl.load(bases + row) + first + i, y, mask=mask)
    found = is_small(size_bits(y)) == 0
    tl.store(large + tl.program_id(0), tl.max(found.to(tl.int32), axis=0))
    flag(status, 0, bad | found)
    flag(status, 1 + entry, alive)


@triton.jit
def _judge(starts, large, refused, CHUNK: tl.constexpr):
    row = tl.program_id(0)
    end = tl.load(starts + row + 1)
    found = tl.zeros([CHUNK], tl.int32)
    for t in range(tl.load(starts + row), end, CHUNK):
        at = t + tl.arange(0, CHUNK)
        found |= tl.load(large + at, mask=at < end, other=0)
    tl.store(refused + row, tl.max(found, axis=0))


def _offsets(counts: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.concatenate(([0], np.cumsum(counts)))).to(device, non_blocking=True)


def take_input(x, add, table: Tensor, status: Tensor, decay: float, add_scale: float) -> Input:
    """x <- y for all rows, which are judged."""
    device = x.device
    w = work.tiles(table, TILE, device)
    bases, starts, total = work.kept(
        table,
        ("sketch", device),
        lambda: (
            _offsets(table[:, 2].cpu().numpy(), device),
            _offsets(-(-table[:, 2].cpu().numpy() // TILE), device),
            int(table[:, 2].sum()),
        ),
    )
    y = scratch("sketch y", total, device=device)
    large = scratch("sketch large", w.programs, torch.int32, device)
    refused = scratch("sketch refused", table.shape[0], torch.int32, device)
    launch(
        _take, w.programs, x, add, w.table, w.tiles, bases, y, large, status, decay, add_scale,
        HAS_ADD=add is not None, TILE=TILE,
    )  # fmt: skip
    launch(_judge, table.shape[0], starts, large, refused, CHUNK=CHUNK)
    return Input(w, bases, starts, y, refused)


def checked_k(op: str, table: Tensor, decoding: bool) -> None:
    """The reference's check of k, once per table."""
    work.kept(table, ("check_k", op), lambda: check_k(op, table.cpu(), decoding=decoding))
