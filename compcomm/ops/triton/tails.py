"""Statistics of magnitudes, and of those above a threshold. Formulas and trees: ``ops/reference/tails.py``.

    magnitude_stats   blocks (x and add once, x written once), then totals per row
    tail_stats        counts per tile, places per row, the list, blocks of the list, totals per row

The second reads x twice, or its own list twice, and the survivors once more. A list is made in place by way of scratch
memory. On a GPU stats that say more elements than a row has count as all of them, and less than none as none: nobody
waits to tell.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.tails import _LOG, BLOCK
from ..scratch import scratch
from . import work
from .butterflies import size_bits
from .common import flag, fold_lanes, load_y, row_of, store
from .launch import launch
from .registry import kernel

NB = 32  # blocks to a program
TILE = NB * BLOCK
PART = 2048  # elements at a time, where a program looks through a tile
CHUNK = 1024  # tiles at a time, where a program goes over those of a row
C0, C1, C2, C3, C4, C5 = (tl.constexpr(c) for c in _LOG)
INFINITE = tl.constexpr(0x7F800000)


@triton.jit
def _log2(bits):
    word = tl.maximum(bits, 0x00800000)
    t = ((word & 0x007FFFFF) | 0x3F800000).to(tl.float32, bitcast=True) - 1.0
    p = tl.full(t.shape, C5, tl.float32) * t + C4
    p = p * t + C3
    p = p * t + C2
    p = p * t + C1
    p = p * t + C0
    return ((word >> 23) - 127).to(tl.float32) + p * t


@triton.jit
def _gather(bits, inside, sizes, squares, logs, least, SQUARES: tl.constexpr, LOGS: tl.constexpr):
    """One step of the lanes [NB, 16]; ``bits`` of magnitudes, 0 where there is none."""
    a = bits.to(tl.float32, bitcast=True)
    sizes += a
    if SQUARES:
        squares += a * a
    if LOGS:
        logs += tl.where(inside, _log2(bits), 0.0)
    return sizes, squares, logs, tl.minimum(least, tl.where(inside, bits, INFINITE))


@triton.jit
def _put(sums, least_of, place, b, used, sizes, squares, logs, least, SQUARES: tl.constexpr, LOGS: tl.constexpr):
    """The sums of the blocks of a program (number ``place``), and its smallest magnitude."""
    at = sums + (place * b.shape[0] + b) * 3
    tl.store(at, fold_lanes(sizes), mask=used)
    if SQUARES:
        tl.store(at + 1, fold_lanes(squares), mask=used)
    if LOGS:
        tl.store(at + 2, fold_lanes(logs), mask=used)
    tl.store(least_of + place, tl.min(tl.ravel(least), axis=0))


@triton.jit
def _blocks(
    x, add, table, tiles, status, sums, least_of, decay, add_scale,
    HAS_ADD: tl.constexpr, SQUARES: tl.constexpr, LOGS: tl.constexpr, NB: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    _, tile, x_at, add_at, numel, _, _, _, _, entry = row_of(table, tiles)
    first = tile * (NB * BLOCK)
    b = tl.arange(0, NB)
    i = b[:, None] * BLOCK + tl.arange(0, 16)[None, :]
    sizes = tl.zeros([NB, 16], tl.float32)
    squares, logs = sizes, sizes
    least = tl.full([NB, 16], INFINITE, tl.int32)
    bad = tl.zeros([NB, 16], tl.int32)
    alive = bad
    for r in range(BLOCK // 16):
        at = i + r * 16
        mask = at < numel - first
        y, wrong, some = load_y(
            x, add, x_at + first, tl.where(add_at < 0, -1, add_at + first), at, mask, decay, add_scale, True, HAS_ADD
        )
        store(x + x_at + first + at, y, mask)
        bad |= wrong.to(tl.int32)
        alive |= some.to(tl.int32)
        sizes, squares, logs, least = _gather(size_bits(y), mask, sizes, squares, logs, least, SQUARES, LOGS)
    _put(
        sums, least_of, tl.program_id(0).to(tl.int64), b, b * BLOCK < numel - first, sizes, squares, logs, least,
        SQUARES, LOGS,
    )  # fmt: skip
    flag(status, 0, bad != 0)
    flag(status, 1 + entry, alive != 0)


@triton.jit
def _fold_doubles(lanes):
    """[16] -> the sum, halved 8, 4, 2, 1 apart."""
    lanes = tl.sum(tl.reshape(lanes, [2, 8]), axis=0)
    lanes = tl.sum(tl.reshape(lanes, [2, 4]), axis=0)
    lanes = tl.sum(tl.reshape(lanes, [2, 2]), axis=0)
    return tl.sum(lanes, axis=0)


@triton.jit
def _totals(
    table, starts, counts, threshold, stats, sums, least_of,
    TAIL: tl.constexpr, SQUARES: tl.constexpr, LOGS: tl.constexpr, NB: tl.constexpr, BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """A row's statistics from those of its blocks. TAIL: of ``counts[row]`` elements, where there is a threshold."""
    row = tl.program_id(0).to(tl.int64)
    count = tl.load(counts + row) if TAIL else tl.load(table + 8 * row + 2)
    limit = tl.load(threshold + row) if TAIL else 0.0
    if limit == limit:
        lane = tl.arange(0, 16)
        start = tl.load(starts + row)
        blocks = (count + BLOCK - 1) // BLOCK
        sizes = tl.zeros([16], tl.float64)
        squares, logs = sizes, sizes
        for b in tl.range(0, blocks, 16, loop_unroll_factor=16):
            at = sums + (start * NB + b + lane) * 3
            mask = b + lane < blocks
            sizes += tl.load(at, mask=mask, other=0.0).to(tl.float64)
            if SQUARES:
                squares += tl.load(at + 1, mask=mask, other=0.0).to(tl.float64)
            if LOGS:
                logs += tl.load(at + 2, mask=mask, other=0.0).to(tl.float64)
        tiles = (blocks + NB - 1) // NB
        least = tl.full([CHUNK], INFINITE, tl.int32)
        for t in range(0, tiles, CHUNK):
            at = t + tl.arange(0, CHUNK)
            least = tl.minimum(least, tl.load(least_of + start + at, mask=at < tiles, other=INFINITE))
        smallest = tl.where(count > 0, tl.min(least, axis=0), 0)
        to = stats + 5 * row
        tl.store(to, count.to(tl.float64))
        tl.store(to + 1, _fold_doubles(sizes))
        tl.store(to + 2, _fold_doubles(squares))
        tl.store(to + 3, smallest.to(tl.float32, bitcast=True).to(tl.float64))
        tl.store(to + 4, _fold_doubles(logs))


@triton.jit
def _held(stats, row, numel):
    """What a row's list holds: as stats say, as far as that can be."""
    told = tl.load(stats + 5 * row)
    return tl.where(told > 0, tl.minimum(told, numel.to(tl.float64)), 0.0).to(tl.int64)


@triton.jit
def _source(x, list_, x_at, stats, row, numel, first, i, FIRST: tl.constexpr):
    """Magnitudes' bits of the elements ``first`` + i of what is looked through, and which there are."""
    if FIRST:
        mask = i < numel - first
        y = tl.load(x + x_at + first + i, mask=mask, other=0.0).to(tl.float32)
    else:
        mask = i < _held(stats, row, numel) - first
        y = tl.load(list_ + x_at + first + i, mask=mask, other=0.0).to(tl.float32)
    return size_bits(y), mask


@triton.jit
def _count(
    x, list_, table, tiles, threshold, stats, found,
    FIRST: tl.constexpr, TILE: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    row, tile, x_at, _, numel, _, _, _, _, _ = row_of(table, tiles)
    limit = tl.load(threshold + row)
    count = tl.zeros([PART], tl.int32)
    for part in range(TILE // PART):
        first = tile * TILE + part * PART
        bits, mask = _source(x, list_, x_at, stats, row, numel, first, tl.arange(0, PART), FIRST)
        count += (mask & (bits.to(tl.float32, bitcast=True) > limit)).to(tl.int32)
    tl.store(found + tl.program_id(0), tl.sum(count, axis=0))


@triton.jit
def _places(table, starts, found, before, counts, TILE: tl.constexpr, CHUNK: tl.constexpr):
    """Per row: how many lie before each of its tiles, and how many there are."""
    row = tl.program_id(0).to(tl.int64)
    start = tl.load(starts + row)
    tiles = (tl.load(table + 8 * row + 2) + TILE - 1) // TILE
    total = tl.zeros([], tl.int64)
    for t in range(0, tiles, CHUNK):
        at = t + tl.arange(0, CHUNK)
        n = tl.load(found + start + at, mask=at < tiles, other=0).to(tl.int64)
        tl.store(before + start + at, total + tl.cumsum(n, axis=0) - n, mask=at < tiles)
        total += tl.sum(n, axis=0)
    tl.store(counts + row, total)


@triton.jit
def _pick(
    x, list_, to, table, tiles, threshold, stats, before,
    FIRST: tl.constexpr, TILE: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """What exceeds the threshold, in order, to a list at the row's place in ``to``."""
    row, tile, x_at, _, numel, _, _, _, _, _ = row_of(table, tiles)
    limit = tl.load(threshold + row)
    at = x_at + tl.load(before + tl.program_id(0))
    for part in range(TILE // PART):
        first = tile * TILE + part * PART
        bits, mask = _source(x, list_, x_at, stats, row, numel, first, tl.arange(0, PART), FIRST)
        a = bits.to(tl.float32, bitcast=True)
        over = (mask & (a > limit)).to(tl.int32)
        store(to + at + (tl.cumsum(over, axis=0) - 1), a, over != 0)
        at += tl.sum(over, axis=0)


@triton.jit
def _list_blocks(
    from_, list_, table, tiles, counts, threshold, sums, least_of,
    COPY: tl.constexpr, SQUARES: tl.constexpr, NB: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The sums of a list's blocks. COPY: and from scratch memory to the list."""
    row, tile, x_at, _, _, _, _, _, _, _ = row_of(table, tiles)
    left = tl.load(counts + row) - tile * (NB * BLOCK)
    limit = tl.load(threshold + row)
    if (left > 0) & (limit == limit):
        first = x_at + tile * (NB * BLOCK)
        b = tl.arange(0, NB)
        i = b[:, None] * BLOCK + tl.arange(0, 16)[None, :]
        sizes = tl.zeros([NB, 16], tl.float32)
        squares, logs = sizes, sizes
        least = tl.full([NB, 16], INFINITE, tl.int32)
        for r in range(BLOCK // 16):
            at = i + r * 16
            mask = at < left
            a = tl.load(from_ + first + at, mask=mask, other=0.0).to(tl.float32)
            if COPY:
                store(list_ + first + at, a, mask)
            sizes, squares, logs, least = _gather(size_bits(a), mask, sizes, squares, logs, least, SQUARES, False)
        _put(
            sums, least_of, tl.program_id(0).to(tl.int64), b, b * BLOCK < left, sizes, squares, logs, least,
            SQUARES, False,
        )  # fmt: skip


def _starts(table: Tensor, device: torch.device) -> Tensor:
    """The first tile of every row."""

    def make() -> Tensor:
        tiles = -(-table[:, 2].cpu().numpy() // TILE)
        return torch.from_numpy(np.cumsum(tiles) - tiles).to(device, non_blocking=True)

    return work.kept(table, ("tails", device), make)


@kernel("magnitude_stats")
def magnitude_stats(x, add, wire, table, status, decay, add_scale, stats, squares, logs):
    work.check_encode("magnitude_stats", x, add, wire, table, status, lambda _: 0)
    w = work.tiles(table, TILE, x.device)
    sums = scratch("tails sums", 3 * NB * w.programs, device=x.device)
    least = scratch("tails least", w.programs, torch.int32, x.device)
    launch(
        _blocks, w.programs, x, add, w.table, w.tiles, status, sums, least, decay, add_scale,
        HAS_ADD=add is not None, SQUARES=squares, LOGS=logs, NB=NB, BLOCK=BLOCK,
    )  # fmt: skip
    launch(
        _totals, table.shape[0], w.table, _starts(table, x.device), w.table, sums, stats, sums, least,
        TAIL=False, SQUARES=squares, LOGS=logs, NB=NB, BLOCK=BLOCK, CHUNK=CHUNK, num_warps=1,
    )  # fmt: skip


def _check_tails(x: Tensor, list_: Tensor, table: Tensor) -> None:
    for r, (at, _, numel, *_) in enumerate(table.tolist()):
        if numel < 0 or at < 0 or at + numel > min(x.numel(), list_.numel()):
            raise ValueError(
                f"compcomm.tail_stats: table row {r}: elements {at}..{at + numel} are outside "
                f"x of {x.numel()} or list of {list_.numel()} elements"
            )


def _check_held(table: Tensor, threshold: Tensor, stats: Tensor) -> None:
    """The interpreter's answer to stats that cannot be: that of the reference."""
    for r, (line, limit, held) in enumerate(zip(table.tolist(), threshold.tolist(), stats[:, 0].tolist(), strict=True)):
        if limit == limit and not 0 <= held <= line[2]:
            raise ValueError(f"compcomm.tail_stats: table row {r}: stats say {held} of {line[2]} elements")


@kernel("tail_stats")
def tail_stats(x, list, table, threshold, stats, first, squares):
    work.kept(table, ("tail_stats", x.numel(), list.numel()), lambda: _check_tails(x, list, table.cpu()))
    if x.device.type == "cpu" and not first:
        _check_held(table, threshold, stats)
    device, rows = x.device, table.shape[0]
    w = work.tiles(table, TILE, device)
    starts, threshold = _starts(table, device), work.on(threshold, device)
    found = scratch("tails found", w.programs, torch.int32, device)
    before = scratch("tails before", w.programs, torch.int64, device)
    counts = scratch("tails counts", rows, torch.int64, device)
    sums = scratch("tails sums", 3 * NB * w.programs, device=device)
    least = scratch("tails least", w.programs, torch.int32, device)
    direct = first and list.dtype == torch.float32
    to = list if direct else scratch("tails list", x.numel(), device=device)
    form = {"FIRST": first, "TILE": TILE, "PART": PART}
    launch(_count, w.programs, x, list, w.table, w.tiles, threshold, stats, found, **form)
    launch(_places, rows, w.table, starts, found, before, counts, TILE=TILE, CHUNK=CHUNK)
    launch(_pick, w.programs, x, list, to, w.table, w.tiles, threshold, stats, before, **form)
    launch(
        _list_blocks, w.programs, to, list, w.table, w.tiles, counts, threshold, sums, least,
        COPY=not direct, SQUARES=squares, NB=NB, BLOCK=BLOCK,
    )  # fmt: skip
    launch(
        _totals, rows, w.table, starts, counts, threshold, stats, sums, least,
        TAIL=True, SQUARES=squares, LOGS=False, NB=NB, BLOCK=BLOCK, CHUNK=CHUNK, num_warps=1,
    )  # fmt: skip
