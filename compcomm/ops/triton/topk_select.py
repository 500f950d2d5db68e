"""The s largest magnitudes of each row, exactly: which they are is settled on the device, in a fixed set of launches.

    probe   per row: a low guess of the s-th largest magnitude, from a sample that hits each region of the row
    sweep   the only pass over x and add: y goes to x, and what reaches the guess to a list of candidates
    radix   four launches: the s-th largest of the list, eight bits at a time
    tally   per tile: how many lie above it, and how many equal it
    scan    per row: the same for all tiles before each tile, so every tile knows its place in the message
    (write  in ``topk.py``)

Only the guess is a guess: a row whose list turned out too short or too long is read again instead of its list in the
launches after the sweep, which finds the same elements; so is a row too short, or an s too large, for a list to pay.

DRAM traffic per element, fp32, s far below numel: 12 bytes (x and add once, x written once), and about 2 s times 6
bytes of list, written once and read six times, mostly from the L2 cache. Without the list: 24 bytes more. An x of half
precision cannot hold y: there the sweep writes no x, y is computed anew where it is needed, and ``write`` makes x from
it, so that x and add are read twice.

Magnitudes are compared as the integers of their bits, 31 of them, and ties go to the lowest index.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import flag, load_y, row_of
from .launch import launch
from .topk_plan import (
    BINS,
    CHUNK,
    COUNTS,
    FOUND,
    LOW,
    NOTHING,
    PART,
    PREFIX,
    ROUNDS,
    SAMPLE,
    SAMPLED,
    STATE,
    STRETCH,
    TILE,
    WANTED,
    Lists,
    Plan,
)


class Source(NamedTuple):
    """Where y comes from after the sweep: x itself, or what made it."""

    x: Tensor
    add: Tensor | None
    decay: float
    add_scale: float


@triton.jit
def magnitude(y):
    return y.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def load_y_at(x, add, x_at, add_at, first, i, mask, decay, add_scale, HAS_ADD: tl.constexpr):
    """y at ``first + i`` of the row: ``first`` int64, i int32."""
    add_at = tl.where(add_at < 0, -1, add_at + first)
    y, _, _ = load_y(x, add, x_at + first, add_at, i, mask, decay, add_scale, True, HAS_ADD)
    return y


@triton.jit
def is_listed(state, wanted, room):
    """Whether the row's list holds all that is wanted."""
    found = tl.load(state + FOUND)
    return (found >= wanted) & (found <= room)


@triton.jit
def clear(state, bins, low, wanted, top):
    """A row's state at the begin of a call; ``top``: which element of the sample is looked for."""
    f = tl.arange(0, STATE)
    value = tl.where(f == LOW, low, tl.where((f == WANTED) | (f == PREFIX + 1), wanted, 0))
    value = tl.where(f == SAMPLED + 1, top, value)
    tl.store(state + f, value.to(tl.int32))
    b = tl.arange(0, 2 * ROUNDS * BINS)
    tl.store(bins + b, tl.zeros_like(b))


@triton.jit
def resolve(state, bins, ENTRY: tl.constexpr, SET: tl.constexpr, ROUND: tl.constexpr):
    """(prefix, rank) after ``ROUND`` rounds: from those before it and the last round's bins."""
    if ROUND == 0:
        return tl.load(state + ENTRY), tl.load(state + ENTRY + 1)
    else:
        prefix = tl.load(state + ENTRY + 2 * ROUND - 2)
        rank = tl.load(state + ENTRY + 2 * ROUND - 1)
        WIDTH: tl.constexpr = 128 if ROUND == ROUNDS else 256
        b = tl.arange(0, WIDTH)
        h = tl.load(bins + (SET * ROUNDS + ROUND - 1) * BINS + b)
        reaching = tl.sum(h, axis=0) - tl.cumsum(h, axis=0) + h  # bins b and above
        digit = tl.sum((reaching >= rank).to(tl.int32), axis=0) - 1
        above = tl.sum(tl.where(b > digit, h, 0), axis=0)
        return prefix * WIDTH + digit, rank - above


@triton.jit
def put_resolved(state, prefix, rank, ENTRY: tl.constexpr, ROUND: tl.constexpr):
    tl.store(state + ENTRY + 2 * ROUND, prefix)
    tl.store(state + ENTRY + 2 * ROUND + 1, rank)


@triton.jit
def digits(mag, mask, prefix, ROUND: tl.constexpr):
    """How often each digit of this round occurs among the magnitudes that begin with ``prefix``."""
    if ROUND == ROUNDS - 1:
        SHIFT: tl.constexpr = 0
        WIDTH: tl.constexpr = 128
    else:
        SHIFT: tl.constexpr = 23 - 8 * ROUND
        WIDTH: tl.constexpr = 256
    high = mag >> SHIFT
    return tl.histogram(high % WIDTH, WIDTH, mask=mask & (high // WIDTH == prefix))


@triton.jit
def add_digits(bins, h, SET: tl.constexpr, ROUND: tl.constexpr):
    b = tl.arange(0, h.shape[0])
    tl.atomic_add(bins + (SET * ROUNDS + ROUND) * BINS + b, h, mask=h > 0, sem="relaxed")


@triton.jit
def _probe(
    x, add, table, rows, counts, state, bins, decay, add_scale,
    HAS_ADD: tl.constexpr, SOME: tl.constexpr, SAMPLE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    line = table + 8 * row
    x_at, add_at, numel = tl.load(line), tl.load(line + 1), tl.load(line + 2)
    wanted = tl.load(line + 6)
    if SOME:
        wanted = tl.minimum(tl.maximum(tl.load(counts + row), 0), wanted)
    low = tl.full([], NOTHING, tl.int32)
    rank = 2 * SAMPLE * wanted // tl.maximum(numel, 1) + 16
    if (tl.load(rows + 3 * row + 2) > 0) & (wanted > 0) & (rank < SAMPLE):
        # Long rows: single elements; shorter ones: whole sectors of memory, or the sample would read all of them.
        group = tl.where(numel >= 64 * SAMPLE, 1, 8).to(tl.int32)
        cell = (numel // (SAMPLE // group)).to(tl.int32)
        j = tl.arange(0, SAMPLE)
        number = j // group
        hashed = (number.to(tl.uint32) * tl.full([SAMPLE], 0x9E3779B9, tl.uint32)).to(tl.uint32)
        shift = tl.umulhi(hashed, tl.zeros_like(hashed) + (cell - group + 1).to(tl.uint32)).to(tl.int32)
        i = number * cell + shift + j % group
        y, _, _ = load_y(x, add, x_at, add_at, i, j < SAMPLE, decay, add_scale, True, HAS_ADD)
        high = magnitude(y) >> 15
        guess = tl.zeros([], tl.int32)
        for bit in tl.static_range(16):
            trial = guess + (1 << (15 - bit))
            reaching = tl.sum((high >= trial).to(tl.int32), axis=0)
            guess = tl.where(reaching >= rank, trial, guess)
        low = tl.where(guess > 0, guess * 32768, low)  # everything reaches 0: no list can hold that
    clear(state + row * STATE, bins + row * (2 * ROUNDS * BINS), low, wanted.to(tl.int32), 0)


@triton.jit
def _sweep(
    x, add, table, tiles, rows, status, state, begin, length, value, place, decay, add_scale,
    HAS_ADD: tl.constexpr, WRITE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row, tile, x_at, add_at, numel, _, _, _, _, entry = row_of(table, tiles)
    first = tile * TILE
    i = tl.arange(0, TILE)
    mask = i < numel - first
    y, bad, alive = load_y(
        x, add, x_at + first, tl.where(add_at < 0, -1, add_at + first), i, mask, decay, add_scale, True, HAS_ADD
    )
    if WRITE:
        tl.store(x + x_at + first + i, y, mask=mask)
    flag(status, 0, bad)
    flag(status, 1 + entry, alive)
    state += row * STATE
    taken = mask & (magnitude(y) >= tl.load(state + LOW))
    total = tl.sum(taken.to(tl.int32), axis=0)
    p = tl.program_id(0)
    if total > 0:
        before = tl.atomic_add(state + FOUND, total, sem="relaxed")
        tl.store(begin + p, before)
        at = tl.load(rows + 3 * row + 1) + before
        taken = taken & (before + total <= tl.load(rows + 3 * row + 2))
        order = tl.cumsum(taken.to(tl.int32), axis=0) - 1
        tl.store(value + at + order, y, mask=taken)
        tl.store(place + at + order, i.to(tl.int16), mask=taken)
    tl.store(length + p, total)


@triton.jit
def _radix(
    x, add, table, stretches, rows, state, bins, value, decay, add_scale,
    HAS_ADD: tl.constexpr, DECIDE: tl.constexpr, ROUND: tl.constexpr, PART: tl.constexpr, STRETCH: tl.constexpr,
):  # fmt: skip
    row, part, x_at, add_at, numel, _, _, _, k, _ = row_of(table, stretches)
    state += row * STATE
    bins += row * (2 * ROUNDS * BINS)
    room = tl.load(rows + 3 * row + 2)
    if DECIDE:
        wanted = decide(state, k)
        if part == 0:
            tl.store(state + WANTED, wanted)
    else:
        wanted = tl.load(state + WANTED)
    listed = is_listed(state, wanted, room)
    items = numel
    if listed:
        items = tl.load(state + FOUND).to(tl.int64)
    first = part * PART
    if (part == 0) | (first < items):
        if DECIDE:
            prefix, rank = tl.zeros_like(wanted), wanted
        else:
            prefix, rank = resolve(state, bins, PREFIX, 0, ROUND)
        if (part == 0) & ((ROUND > 0) | DECIDE):
            put_resolved(state, prefix, rank, PREFIX, ROUND)
        at = tl.load(rows + 3 * row + 1)
        step = (numel + STRETCH - 1) // STRETCH * PART  # the row's programs take turns
        i = tl.arange(0, PART)
        h = tl.zeros([128 if ROUND == ROUNDS - 1 else 256], tl.int32)
        while first < items:
            mask = i < items - first
            if listed:
                y = tl.load(value + at + first + i, mask=mask, other=0.0)
            else:
                y = load_y_at(x, add, x_at, add_at, first, i, mask, decay, add_scale, HAS_ADD)
            h += digits(magnitude(y), mask, prefix, ROUND)
            first += step
        add_digits(bins, h, 0, ROUND)


@triton.jit
def decide(state, k):
    """How many of the k are sent by a sampled threshold: see ``sampled.py``."""
    j = tl.arange(0, 16)
    counts = tl.load(state + COUNTS + j).to(tl.int64)
    enough = (j < 11) & (5 * counts >= 4 * k)
    first = tl.min(tl.where(enough, j, 16), axis=0)
    count = tl.sum(tl.where(j == first, counts, 0), axis=0)
    return tl.where(first < 16, tl.minimum(count, k), k).to(tl.int32)


@triton.jit
def load_items(
    x, add, value, place, x_at, add_at, list_at, first, begin, c, items, decay, add_scale, listed,
    HAS_ADD: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The tile's elements ``c .. c + CHUNK``, of its list or all: y, their places in the tile, which there are."""
    i = c + tl.arange(0, CHUNK)
    mask = i < items
    if listed:
        at = list_at + begin
        y = tl.load(value + at + i, mask=mask, other=0.0)
        i = tl.load(place + at + i, mask=mask, other=0).to(tl.int32)
    else:
        y = load_y_at(x, add, x_at, add_at, first, i, mask, decay, add_scale, HAS_ADD)
    return y, i, mask


@triton.jit
def _tally(
    x, add, table, tiles, rows, state, bins, length, begin, tally, value, place, decay, add_scale,
    HAS_ADD: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    row, tile, x_at, add_at, numel, _, _, _, _, _ = row_of(table, tiles)
    p = tl.program_id(0)
    state += row * STATE
    bins += row * (2 * ROUNDS * BINS)
    first = tile * TILE
    listed = is_listed(state, tl.load(state + WANTED), tl.load(rows + 3 * row + 2))
    items = tl.minimum(numel - first, TILE).to(tl.int32)
    if listed:
        items = tl.load(length + p)
    above = tl.zeros([], tl.int32)
    equal = tl.zeros([], tl.int32)
    if (tile == 0) | (items > 0):
        limit, ties = resolve(state, bins, PREFIX, 0, ROUNDS)
        if tile == 0:
            put_resolved(state, limit, ties, PREFIX, ROUNDS)
        list_at = tl.load(rows + 3 * row + 1)
        before = tl.load(begin + p, mask=listed & (items > 0), other=0)
        for c in range(0, items, CHUNK):
            y, i, mask = load_items(
                x, add, value, place, x_at, add_at, list_at, first, before, c, items, decay, add_scale, listed,
                HAS_ADD, CHUNK,
            )  # fmt: skip
            mag = magnitude(y)
            above += tl.sum((mask & (mag > limit)).to(tl.int32), axis=0)
            equal += tl.sum((mask & (mag == limit)).to(tl.int32), axis=0)
    tl.store(tally + p, (above.to(tl.int64) << 32) + equal)


@triton.jit
def _scan(table, rows, state, tally, wire, hint, HAS_HINT: tl.constexpr, TILE: tl.constexpr, WIDE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    line = table + 8 * row
    numel, wire_at, k = tl.load(line + 2), tl.load(line + 3), tl.load(line + 6)
    state += row * STATE
    limit = tl.load(state + PREFIX + 2 * ROUNDS)
    ties = tl.load(state + PREFIX + 2 * ROUNDS + 1).to(tl.int64)
    tally += tl.load(rows + 3 * row)
    count = (numel + TILE - 1) // TILE
    carry = tl.zeros([], tl.int64)
    t = tl.arange(0, WIDE)
    first = tl.zeros([], tl.int64)
    while first < count:
        own = tl.load(tally + first + t, mask=t < count - first, other=0)
        before = tl.cumsum(own, axis=0) - own + carry
        equal = before & 0xFFFFFFFF
        kept = (before >> 32) + tl.minimum(equal, ties)
        tl.store(tally + first + t, (kept << 32) + equal, mask=t < count - first)
        carry += tl.sum(own, axis=0)
        first += WIDE
    if HAS_HINT:
        limit = tl.where((tl.load(state + WANTED) > 0) & (numel > 0), limit, 0)
        tl.store(hint + row, limit.to(tl.float32, bitcast=True))
    if k % 2 != 0:  # the offsets are padded to 4 bytes
        at = wire + wire_at + (numel + 65535) // 65536 * 4 + 2 * k
        tl.store(at, tl.zeros([], tl.uint8))
        tl.store(at + 1, tl.zeros([], tl.uint8))


def source(x: Tensor, add: Tensor | None, decay: float, add_scale: float) -> Source:
    return Source(x, None, 1.0, 1.0) if x.dtype is torch.float32 else Source(x, add, decay, add_scale)


def probe(p: Plan, a: Lists, x: Tensor, add: Tensor | None, decay: float, add_scale: float, counts: Tensor | None):
    """State for a selection of ``counts`` (the table's k where None) elements of each row."""
    launch(
        _probe, p.count, x, add, p.tiles.table, p.rows, counts, a.state, a.bins, decay, add_scale,
        HAS_ADD=add is not None, SOME=counts is not None, SAMPLE=SAMPLE, num_warps=8,
    )  # fmt: skip


def sweep(p: Plan, a: Lists, x: Tensor, add: Tensor | None, status: Tensor, decay: float, add_scale: float) -> None:
    w = p.tiles
    launch(
        _sweep, w.programs, x, add, w.table, w.tiles, p.rows, status, a.state, a.begin, a.length, a.value, a.place,
        decay, add_scale,
        HAS_ADD=add is not None, WRITE=x.dtype is torch.float32, TILE=TILE, num_warps=8,
    )  # fmt: skip


def select(p: Plan, a: Lists, y: Source, wire: Tensor, hint: Tensor | None, *, decided: bool = True) -> None:
    """What is kept, and the place of every tile in the message. Not ``decided``: how many follows from the counts."""
    w, has_add = p.stretches, y.add is not None
    for r in range(ROUNDS.value):
        launch(
            _radix, w.programs, y.x, y.add, w.table, w.tiles, p.rows, a.state, a.bins, a.value, y.decay, y.add_scale,
            HAS_ADD=has_add, DECIDE=r == 0 and not decided, ROUND=r, PART=PART, STRETCH=STRETCH,
        )  # fmt: skip
    w = p.tiles
    launch(
        _tally, w.programs, y.x, y.add, w.table, w.tiles, p.rows, a.state, a.bins, a.length, a.begin, a.tally, a.value,
        a.place, y.decay, y.add_scale,
        HAS_ADD=has_add, TILE=TILE, CHUNK=CHUNK,
    )  # fmt: skip
    launch(
        _scan, p.count, w.table, p.rows, a.state, a.tally, wire, hint,
        HAS_HINT=hint is not None, TILE=TILE, WIDE=4096, num_warps=8,
    )  # fmt: skip
