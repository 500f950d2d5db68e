"""Top-k, the encoders: the largest magnitudes of each row and where they are. Layout: ``ops/reference/topk.py``; how
they are found, and the bytes that costs: ``topk_select.py``. Nine launches, however many rows.

``topk_encode`` writes the hint and does not look at it: the sample that the guess comes from costs less than a wrong
hint would, and follows the data.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.topk import check_k, section
from . import work
from .common import put32, row_of, store
from .launch import launch
from .registry import kernel
from .topk_plan import CHUNK, PREFIX, ROUNDS, STATE, TILE, WANTED, Lists, Plan, lists, plan
from .topk_select import Source, is_listed, load_items, magnitude, probe, select, source, sweep


@triton.jit
def _clear(wire, offsets_at, values_at, first, wanted, k, WORDS: tl.constexpr, TILE: tl.constexpr):
    """Slots ``first`` to ``first + TILE`` of the capacity, as far as they are not used."""
    slot = first + tl.arange(0, TILE)
    unused = (slot >= wanted) & (slot < k)
    nothing = tl.zeros([TILE], tl.int32)
    tl.store(wire + offsets_at + 2 * slot, nothing.to(tl.uint8), mask=unused)
    tl.store(wire + offsets_at + 2 * slot + 1, nothing.to(tl.uint8), mask=unused)
    put32(wire, values_at + 4 * slot, nothing, unused, WORDS)


@triton.jit
def _write(
    x, add, wire, table, tiles, rows, state, length, begin, tally, value, place, decay, add_scale,
    HAS_ADD: tl.constexpr, NARROW: tl.constexpr, PARTIAL: tl.constexpr, WORDS: tl.constexpr, TILE: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    row, tile, x_at, add_at, numel, wire_at, _, _, k, _ = row_of(table, tiles)
    p = tl.program_id(0)
    state += row * STATE
    first = tile * TILE
    limit = tl.load(state + PREFIX + 2 * ROUNDS)
    ties = tl.load(state + PREFIX + 2 * ROUNDS + 1)
    wanted = tl.load(state + WANTED)
    offsets_at = wire_at + (numel + 65535) // 65536 * 4
    values_at = offsets_at + (2 * k + 3) // 4 * 4
    mine = tl.load(tally + p)
    slot = (mine >> 32).to(tl.int32)
    tied = (mine & 0xFFFFFFFF).to(tl.int32)

    # Offsets have 16 bits, so a section counts its elements by blocks of 65,536. All tiles' slots are known beforehand:
    # a block's count is where the next one begins, and no program waits for another.
    BLOCK: tl.constexpr = 65536 // TILE
    if tile % BLOCK == 0:
        more = (tile + BLOCK) * TILE < numel
        end = tl.where(more, tl.load(tally + p + BLOCK, mask=more, other=0) >> 32, wanted)
        put32(wire, wire_at + tile // BLOCK * 4, (end - slot).to(tl.int32), tl.full([], 1, tl.int1), WORDS)
    if PARTIAL:
        if (first < k) & (wanted < first + TILE):
            _clear(wire, offsets_at, values_at, first, wanted, k, WORDS, TILE)

    # An x of half precision still has its old content, and each of its elements is to become y rounded: the list of
    # the largest is of no use then.
    listed = is_listed(state, wanted, tl.load(rows + 3 * row + 2)) & (NARROW == 0)
    items = tl.minimum(numel - first, TILE).to(tl.int32)
    if listed:
        items = tl.load(length + p)
    list_at = tl.load(rows + 3 * row + 1)
    before = tl.load(begin + p, mask=listed & (items > 0), other=0)
    for c in range(0, items, CHUNK):
        y, i, mask = load_items(
            x, add, value, place, x_at, add_at, list_at, first, before, c, items, decay, add_scale, listed, HAS_ADD,
            CHUNK,
        )  # fmt: skip
        mag = magnitude(y)
        equal = mask & (mag == limit)
        # Of equal magnitudes the lowest indices are kept, and slots rise with the index: the message has the same bits
        # as every other kernel's.
        rank = tied + tl.cumsum(equal.to(tl.int32), axis=0) - 1
        kept = (mask & (mag > limit)) | (equal & (rank < ties))
        at = slot + tl.cumsum(kept.to(tl.int32), axis=0) - 1
        offset = (tile % BLOCK).to(tl.int32) * TILE + i
        to = wire + offsets_at + 2 * at.to(tl.int64)
        if WORDS:  # the wire lies at a multiple of four: else a store of two bytes is a fault
            tl.store(to.to(tl.pointer_type(tl.uint16)), offset.to(tl.uint16), mask=kept)
        else:
            tl.store(to, (offset & 0xFF).to(tl.uint8), mask=kept)
            tl.store(to + 1, (offset >> 8).to(tl.uint8), mask=kept)
        put32(wire, values_at + 4 * at.to(tl.int64), y, kept, WORDS)
        if NARROW:
            store(x + x_at + first + i, tl.where(kept, 0.0, y), mask)
        else:
            tl.store(x + x_at + first + i, tl.zeros_like(y), mask=kept)
        slot += tl.sum(kept.to(tl.int32), axis=0)
        tied += tl.sum(equal.to(tl.int32), axis=0)


def write(p: Plan, a: Lists, y: Source, wire: Tensor, *, partial: bool) -> None:
    """The message, and zeros in x where it was sent. ``partial``: fewer than k may be kept, the rest is zero bytes."""
    w = p.tiles
    launch(
        _write, w.programs, y.x, y.add, wire, w.table, w.tiles, p.rows, a.state, a.length, a.begin, a.tally, a.value,
        a.place, y.decay, y.add_scale,
        HAS_ADD=y.add is not None, NARROW=y.x.dtype is not torch.float32, PARTIAL=partial, WORDS=work.words(wire),
        TILE=TILE, CHUNK=CHUNK,
    )  # fmt: skip


def check(op: str, x: Tensor, add: Tensor | None, wire: Tensor, table: Tensor, status: Tensor) -> None:
    """The reference's errors, once per sizes."""
    work.kept(table, (op, "k"), lambda: check_k(op, table, decoding=False))
    work.check_encode(op, x, add, wire, table, status, section)


@kernel("topk_encode")
def topk_encode(x, add, wire, table, status, decay, add_scale, hint):
    check("topk_encode", x, add, wire, table, status)
    p = plan(table, wire.device)
    a, y = lists(p, wire.device), source(x, add, decay, add_scale)
    probe(p, a, x, add, decay, add_scale, None)
    sweep(p, a, x, add, status, decay, add_scale)
    select(p, a, y, wire, hint)
    write(p, a, y, wire, partial=False)


def _check_counts(table: Tensor, counts: Tensor) -> None:
    """Counts on a GPU are not read: there they are cut to 0..k."""
    if counts.device.type != "cpu":
        return
    for r, (count, k) in enumerate(zip(counts.tolist(), table[:, 6].tolist(), strict=True)):
        if not 0 <= count <= k:
            raise ValueError(f"compcomm.topk_some_encode: table row {r}: counts is {count}, the capacity k {k}")


@kernel("topk_some_encode")
def topk_some_encode(x, add, wire, table, status, decay, add_scale, counts, bounds):
    check("topk_some_encode", x, add, wire, table, status)
    _check_counts(table, counts)
    p = plan(table, wire.device)
    a, y = lists(p, wire.device), source(x, add, decay, add_scale)
    probe(p, a, x, add, decay, add_scale, work.on(counts, wire.device))
    sweep(p, a, x, add, status, decay, add_scale)
    select(p, a, y, wire, None)
    write(p, a, y, wire, partial=True)
