"""``norms``: sums of squares in fp64, added one after the other in sixteen lanes. The formula:
``ops/reference/segment_ops.py``.

The reference's order leaves a long row only sixteen chains of additions. They are cut into chunks whose effect is found
in parallel, to the bit. While the running sum s stays between two powers of two, it is a multiple of its unit u (that
of its last place), and so adding a square moves s/u by an integer: the square over u, rounded, where only a tie asks
whether s/u is even. A chunk's effect is then two integers, for even and for odd s/u. Four launches:

1. every chunk's sum, roughly;
2. the sum before every chunk, roughly, and its unit;
3. every chunk's two integers for that unit;
4. the walk: a program per row takes a chunk at a step where its unit is the true one and the sum reaches no power of
   two, and adds the others' elements one by one: about one chunk in a hundred, and all of a short row.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from ..scratch import scratch
from . import work
from .common import finite
from .launch import launch
from .registry import kernel
from .segment_ops import check, double, wide

STEPS = 256  # of a lane in a chunk
SHORT = 4  # chunks of a row that is only walked
CHUNKS = 8  # to a program
UNROLLED = 16


@triton.jit
def square(pointer, mask, DOUBLE: tl.constexpr):
    x = wide(tl.load(pointer, mask=mask, other=0.0), DOUBLE)
    x = tl.where(finite(x), x, 0.0).to(tl.float64)
    return x * x


@triton.jit
def chunks_of(table, tiles, places, STEPS: tl.constexpr, CHUNKS: tl.constexpr):
    """This program's chunks: (first element, elements of the row from there on, offsets [CHUNKS, 16] of the chunks'
    first elements, where its numbers are kept, whether the row has such a chunk)."""
    p = tl.program_id(0).to(tl.int64)
    row = tl.load(tiles + 2 * p).to(tl.int64)
    chunk = tl.load(tiles + 2 * p + 1).to(tl.int64) * CHUNKS
    first = chunk * (16 * STEPS)
    left = tl.load(table + 4 * row + 2) - first
    c, lane = tl.arange(0, CHUNKS)[:, None], tl.arange(0, 16)[None, :]
    at = (tl.load(places + row) + chunk + c) * 16 + lane
    offsets = c * (16 * STEPS) + lane
    return tl.load(table + 4 * row + 1) + first, left, offsets, at, (c * (16 * STEPS) < left) & (lane >= 0)


@triton.jit
def _rough_sums(
    source, sums, table, tiles, places,
    DOUBLE: tl.constexpr, STEPS: tl.constexpr, CHUNKS: tl.constexpr, UNROLLED: tl.constexpr,
):  # fmt: skip
    first, left, offsets, at, there = chunks_of(table, tiles, places, STEPS, CHUNKS)
    total = tl.zeros([CHUNKS, 16], tl.float64)
    for r in range(0, STEPS, UNROLLED):
        for u in tl.static_range(UNROLLED):
            i = offsets + (r + u) * 16
            total += square(source + first + i, i < left, DOUBLE)
    tl.store(sums + at, total, mask=there)


@triton.jit
def _units(sums, units, table, rows, places, STEPS: tl.constexpr, TILE: tl.constexpr):
    """A chunk's unit as fp64; 0 where it adds nothing, negative where it is to be added one by one."""
    row = tl.load(rows + tl.program_id(0)).to(tl.int64)
    chunks = tl.cdiv(tl.load(table + 4 * row + 2), 16 * STEPS)
    first = tl.load(places + row)
    c, lane = tl.arange(0, TILE)[:, None], tl.arange(0, 16)[None, :]
    carry = tl.zeros([16], tl.float64)
    for begin in range(0, chunks, TILE):
        at = (first + begin + c) * 16 + lane
        there = (begin + c < chunks) & (lane >= 0)
        own = tl.load(sums + at, mask=there, other=0.0)
        last = tl.load(sums + at - 16, mask=there & (begin + c > 0), other=0.0)
        before = tl.cumsum(last, axis=0) + carry[None, :]
        carry += tl.sum(last, axis=0)
        power = (before.to(tl.int64, bitcast=True) >> 52) & 0x7FF
        usual = (power > 150) & (power < 1900)  # the unit and its inverse are normal numbers
        unit = (tl.where(usual, power - 52, 0) << 52).to(tl.float64, bitcast=True)
        unit = tl.where(usual, unit, -1.0)
        tl.store(units + at, tl.where(own == 0, 0.0, unit), mask=there)


@triton.jit
def inverse(unit):
    """1 / unit of a power of two, from its bits; whatever of another number."""
    return ((2046 << 52) - unit.to(tl.int64, bitcast=True)).to(tl.float64, bitcast=True)


@triton.jit
def _moves(
    source, units, evens, odds, table, tiles, places,
    DOUBLE: tl.constexpr, STEPS: tl.constexpr, CHUNKS: tl.constexpr, UNROLLED: tl.constexpr,
):  # fmt: skip
    first, left, offsets, at, there = chunks_of(table, tiles, places, STEPS, CHUNKS)
    unit = tl.load(units + at, mask=there, other=0.0)
    per = tl.where(unit > 0, inverse(unit), 0.0)
    even = tl.zeros([CHUNKS, 16], tl.int64)
    odd = tl.zeros([CHUNKS, 16], tl.int64)
    for r in range(0, STEPS, UNROLLED):
        for u in tl.static_range(UNROLLED):
            i = offsets + (r + u) * 16
            t = square(source + first + i, i < left, DOUBLE) * per
            t = tl.where(t < 9007199254740992.0, t, 9007199254740992.0)  # 2^53 is beyond the power of two in any case
            whole = t.to(tl.int64)
            rest = t - whole.to(tl.float64)
            up = (rest > 0.5).to(tl.int64)
            tie = (rest == 0.5).to(tl.int64)
            even += whole + (up | (tie & (even + whole)))
            odd += whole + (up | (tie & (odd + whole + 1)))
    tl.store(evens + at, even, mask=there)
    tl.store(odds + at, odd, mask=there)


@triton.jit
def _walk(
    source, out, units, evens, odds, table, places,
    DOUBLE: tl.constexpr, STEPS: tl.constexpr, UNROLLED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    first, numel = tl.load(table + 4 * row + 1), tl.load(table + 4 * row + 2)
    place = tl.load(places + row)
    lane = tl.arange(0, 16)
    cut = (lane >= 0) & (place >= 0)
    at = tl.maximum(place, 0) * 16 + lane
    total = tl.zeros([16], tl.float64)
    unit = tl.load(units + at, mask=cut, other=-1.0)
    even = tl.load(evens + at, mask=cut, other=0)
    odd = tl.load(odds + at, mask=cut, other=0)
    for begin in range(0, numel, 16 * STEPS):
        at += 16
        more = cut & (begin + 16 * STEPS < numel)  # the next chunk's are on their way while this one's are used
        next_unit = tl.load(units + at, mask=more, other=-1.0)
        next_even = tl.load(evens + at, mask=more, other=0)
        next_odd = tl.load(odds + at, mask=more, other=0)
        count = tl.where(unit > 0, total * inverse(unit), 0.0)
        inside = (count >= 4503599627370496.0) & (count < 9007199254740992.0)  # 2^52, 2^53: the unit is the true one
        number = tl.where(inside, count, 0.0).to(tl.int64)
        number += tl.where((number & 1) != 0, odd, even)
        right = (inside & (number <= 9007199254740992)) | (unit == 0)
        if tl.min(right.to(tl.int32), axis=0) != 0:
            total = tl.where(unit == 0, total, number.to(tl.float64) * unit)
        else:
            for r in range(0, STEPS, UNROLLED):
                for u in tl.static_range(UNROLLED):
                    i = begin + (r + u) * 16 + lane
                    total += square(source + first + i, i < numel, DOUBLE)
        unit, even, odd = next_unit, next_even, next_odd
    total = tl.sum(tl.reshape(total, [2, 8]), axis=0)
    total = tl.sum(tl.reshape(total, [2, 4]), axis=0)
    total = tl.sum(tl.reshape(total, [2, 2]), axis=0)
    tl.store(out + row, tl.sqrt(tl.sum(total, axis=0)))  # fp64: rounded to the nearest


class _Cut(NamedTuple):
    """On the device: ``places`` of rows' first chunks (-1: only walked), the long ``rows`` and their ``tiles``."""

    table: Tensor
    places: Tensor
    rows: Tensor
    tiles: Tensor
    chunks: int


def _cut(table: Tensor, device: torch.device) -> _Cut:
    def make() -> _Cut:
        chunks = -(-table.cpu().numpy()[:, 2] // (16 * STEPS))
        chunks[chunks < SHORT] = 0
        rows = chunks.nonzero()[0]
        programs = -(-chunks // CHUNKS)
        which = np.repeat(np.arange(len(chunks)), programs)
        inside = np.arange(len(which)) - (np.cumsum(programs) - programs)[which]
        places = np.where(chunks > 0, np.cumsum(chunks) - chunks, -1)
        tiles = np.stack((which, inside), 1).astype(np.int32)
        made = [torch.from_numpy(a).to(device, non_blocking=True) for a in (places, rows.astype(np.int32), tiles)]
        return _Cut(work.on(table, device), made[0], made[1], made[2], int(chunks.sum()))

    return work.kept(table, ("norms", device), make)


@kernel("norms")
def norms(source: Tensor, table: Tensor, out: Tensor) -> None:
    check("norms", None, source, table, None)
    form = {"DOUBLE": double("norms", source), "STEPS": STEPS, "UNROLLED": UNROLLED}
    cut = _cut(table, source.device)
    numbers = 16 * cut.chunks
    sums, units = scratch("norms", 2 * numbers, torch.float64, source.device).split([numbers, numbers])
    evens, odds = scratch("norms", 2 * numbers, torch.int64, source.device).split([numbers, numbers])
    where = (cut.table, cut.tiles, cut.places)
    launch(_rough_sums, len(cut.tiles), source, sums, *where, CHUNKS=CHUNKS, **form)
    launch(_units, len(cut.rows), sums, units, cut.table, cut.rows, cut.places, STEPS=STEPS, TILE=64)
    launch(_moves, len(cut.tiles), source, units, evens, odds, *where, CHUNKS=CHUNKS, **form)
    launch(_walk, len(table), source, out, units, evens, odds, cut.table, cut.places, num_warps=1, **form)
