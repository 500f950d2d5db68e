"""Interleave: y goes to x as it is, and permuted to z. Formulas: ``ops/reference/interleave.py``."""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.interleave import permuted_blocks
from ..reference.rows import ceil_div, rows
from . import work
from .common import flag, load_y, put32, row_of, store
from .launch import launch
from .registry import kernel

TILE = 1024


@triton.jit
def _permute(
    x, add, wire, table, tiles, status, decay, add_scale, ways_of, places,
    HAS_X: tl.constexpr, HAS_ADD: tl.constexpr, WORDS: tl.constexpr, GRAIN: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row, tile, x_at, add_at, numel, wire_at, _, _, ways, entry = row_of(table, tiles)
    first = tile * TILE
    i = tl.arange(0, TILE)
    mask = i < numel - first
    y, bad, alive = load_y(
        x, add, tl.where(x_at < 0, -1, x_at + first), tl.where(add_at < 0, -1, add_at + first), i, mask, decay,
        add_scale, HAS_X, HAS_ADD,
    )  # fmt: skip
    if HAS_X:
        store(x + x_at + first + i, y, mask & (x_at >= 0))
    each, base = tl.load(ways_of + 2 * row), tl.load(ways_of + 2 * row + 1)
    # Block i is number i // ways of way i % ways: from the tile's first block on, in numbers that 32 bits hold.
    block, rest = first // GRAIN, (first % GRAIN).to(tl.int32)
    number, way = block // ways, block % ways
    nth = (rest + i) // GRAIN
    turn = way + nth
    short = ways < 1 << 30
    if short:  # a division of 32 bits costs a tenth
        nths = (turn.to(tl.int32) // ways.to(tl.int32)).to(tl.int64)
    else:
        nths = turn // ways
    permuted = block + nth < each * ways
    place = tl.load(places + base + (turn - nths * ways), mask=mask & permuted, other=0).to(tl.int64)
    to = tl.where(permuted, place * each + number + nths, block + nth) * GRAIN + (rest + i) % GRAIN
    put32(wire, wire_at + to * 4, y, mask, WORDS)
    flag(status, 0, bad)
    flag(status, 1 + entry, alive)


def _ways(table: Tensor, grain: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Per row (blocks of a way, its first entry in the other list); for all rows, the places of ways 0, 1, ..."""
    lines, places, base = [], [], 0
    for r, row in enumerate(rows(table)):
        if row.k < 1:
            raise ValueError(f"compcomm.permute_blocks: table row {r}: {row.k} ways (column 6); 1 or more are possible")
        each = max(0, ceil_div(row.numel, grain) - 1) // row.k
        lines.append((each, base))
        if each:
            # One block each, and one block that is left over: the first blocks tell the order of the ways.
            order = permuted_blocks(grain * row.k + 1, grain, row.k)[: row.k].numpy()
            place = np.empty(row.k, np.int32)
            place[order] = np.arange(row.k, dtype=np.int32)
            places.append(place)
            base += row.k
    flat = np.concatenate(places) if places else np.zeros(1, np.int32)
    both = torch.tensor(lines, dtype=torch.int64).view(-1, 2), torch.from_numpy(flat)
    return both[0].to(device, non_blocking=True), both[1].to(device, non_blocking=True)


@kernel("permute_blocks")
def permute_blocks(x, add, wire, table, status, decay, add_scale, grain):
    work.check_encode("permute_blocks", x, add, wire, table, status, lambda row: 4 * row.numel)
    ways_of, places = work.kept(table, ("ways_of", grain, wire.device), lambda: _ways(table, grain, wire.device))
    w = work.tiles(table, TILE, wire.device)
    launch(
        _permute, w.programs, x, add, wire, w.table, w.tiles, status, decay, add_scale, ways_of, places,
        HAS_X=x is not None, HAS_ADD=add is not None, WORDS=work.words(wire), GRAIN=grain, TILE=TILE,
    )  # fmt: skip
