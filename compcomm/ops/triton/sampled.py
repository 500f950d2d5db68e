"""Top-k by a sampled threshold: ``ops/reference/sampled.py`` defines it, ``topk_select.py`` does most of it.

The sample's threshold is exact, by four launches over a list of the sample. Candidates are what reaches 0.8 of it: that
settles nearly every row. Where it does not, one more launch has counted, over the whole row, what reaches each of the
eleven thresholds that the reference tries one after the other. Fifteen launches, however many rows; to the traffic of
``topk_select.py`` comes a sector of 32 bytes of x and of add for each element of the sample, 0.64 bytes per element.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.sampled import STREAM
from ..reference.sampled import plan as sample_of
from ..scratch import scratch
from . import work
from .common import load_y, philox, row_of
from .launch import launch
from .registry import kernel
from .topk import check, write
from .topk_plan import (
    BINS,
    COUNTS,
    FOUND,
    LIMITS,
    LOW,
    NOTHING,
    PART,
    ROUNDS,
    SAMPLED,
    STATE,
    STRETCH,
    TILE,
    Lists,
    Plan,
    lists,
    plan,
)
from .topk_select import (
    Source,
    add_digits,
    clear,
    digits,
    load_y_at,
    magnitude,
    put_resolved,
    resolve,
    select,
    source,
    sweep,
)


class Sample(NamedTuple):
    """``rows``: int64 [rows, 3], where the sample's list begins, stride, top. ``count``: of all lists together."""

    tiles: work.Work
    rows: Tensor
    count: int


def _sample(table: Tensor, device: torch.device) -> Sample:
    def make() -> Sample:
        counted, lines, at = table.cpu().clone(), [], 0
        for line in counted:
            n, k = int(line[2]), int(line[6])
            stride, top = sample_of(n, k) if k else (1, 0)
            line[2] = -(-n // stride) if k else 0
            lines.append([at, stride, top])
            at += int(line[2])
        rows = torch.tensor(lines, dtype=torch.int64).reshape(-1, 3)
        return Sample(work.tiles(counted, TILE, device), rows.to(device, non_blocking=True), max(1, at))

    return work.kept(table, ("top-k sample", device), make)


@triton.jit
def _reset(table, samples, state, bins):
    row = tl.program_id(0).to(tl.int64)
    k = tl.load(table + 8 * row + 6).to(tl.int32)
    top = tl.load(samples + 3 * row + 2).to(tl.int32)
    clear(state + row * STATE, bins + row * (2 * ROUNDS * BINS), NOTHING, k, top)


@triton.jit
def _start(table, samples, row, step, rank, STREAM: tl.constexpr):
    """(start, how many are looked at), int64 [1] each."""
    line = table + 8 * row
    c0 = tl.zeros([1], tl.int64) + tl.load(line + 4)
    word, _, _, _ = philox((c0 & 0xFFFFFFFF).to(tl.uint32), step, rank, STREAM, tl.load(line + 5))
    stride = tl.load(samples + 3 * row + 1)
    start = (word.to(tl.int64) * stride) >> 32
    return start, (tl.load(line + 2) - start + stride - 1) // stride


@triton.jit(do_not_specialize=["step", "rank"])
def _gather(
    x, add, table, tiles, samples, state, bins, value, decay, add_scale, step, rank,
    HAS_ADD: tl.constexpr, STREAM: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    p = tl.program_id(0).to(tl.int64)
    row = tl.load(tiles + 2 * p).to(tl.int64)
    part = tl.load(tiles + 2 * p + 1).to(tl.int64)
    one = tl.full([1], 1, tl.int64)
    start, count = _start(table, samples, row, one * step, one * rank, STREAM)
    j = part * TILE + tl.arange(0, TILE)
    mask = j < count
    i = start + j * tl.load(samples + 3 * row + 1)
    line = table + 8 * row
    y, _, _ = load_y(x, add, tl.load(line), tl.load(line + 1), i, mask, decay, add_scale, True, HAS_ADD)
    tl.store(value + tl.load(samples + 3 * row) + j, y, mask=mask)
    add_digits(bins + row * (2 * ROUNDS * BINS), digits(magnitude(y), mask, 0, 0), 1, 0)


@triton.jit(do_not_specialize=["step", "rank"])
def _narrow(
    table, tiles, samples, state, bins, value, step, rank,
    ROUND: tl.constexpr, STREAM: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    p = tl.program_id(0).to(tl.int64)
    row = tl.load(tiles + 2 * p).to(tl.int64)
    part = tl.load(tiles + 2 * p + 1).to(tl.int64)
    state += row * STATE
    bins += row * (2 * ROUNDS * BINS)
    prefix, left = resolve(state, bins, SAMPLED, 1, ROUND)
    if part == 0:
        put_resolved(state, prefix, left, SAMPLED, ROUND)
    one = tl.full([1], 1, tl.int64)
    _, count = _start(table, samples, row, one * step, one * rank, STREAM)
    j = part * TILE + tl.arange(0, TILE)
    mask = j < count
    y = tl.load(value + tl.load(samples + 3 * row) + j, mask=mask, other=0.0)
    add_digits(bins, digits(magnitude(y), mask, prefix, ROUND), 1, ROUND)


@triton.jit
def _limits(table, rows, state, bins):
    """The eleven thresholds, and what a candidate must reach: the second of them."""
    row = tl.program_id(0).to(tl.int64)
    state += row * STATE
    limit, _ = resolve(state, bins + row * (2 * ROUNDS * BINS), SAMPLED, 1, ROUNDS)
    threshold = limit.to(tl.float32, bitcast=True)
    j = tl.arange(0, 16)
    limits = tl.full([16], NOTHING, tl.int32)
    for number in tl.static_range(11):
        limits = tl.where(j == number, threshold.to(tl.int32, bitcast=True), limits)
        if number == 1:
            low = threshold.to(tl.int32, bitcast=True)
        threshold = threshold * 0.8
    tl.store(state + LIMITS + j, limits)
    pays = (tl.load(table + 8 * row + 6) > 0) & (tl.load(rows + 3 * row + 2) > 0) & (low > 0)
    tl.store(state + LOW, tl.where(pays, low, NOTHING))


@triton.jit
def _count(
    x, add, table, stretches, rows, state, value, decay, add_scale,
    HAS_ADD: tl.constexpr, PART: tl.constexpr, STRETCH: tl.constexpr,
):  # fmt: skip
    row, part, x_at, add_at, numel, _, _, _, k, _ = row_of(table, stretches)
    state += row * STATE
    found = tl.load(state + FOUND).to(tl.int64)
    listed = (5 * found >= 4 * k) & (found <= tl.load(rows + 3 * row + 2))
    items = tl.where(listed, found, numel)
    first = part * PART
    at = tl.load(rows + 3 * row + 1)
    step = (numel + STRETCH - 1) // STRETCH * PART
    i = tl.arange(0, PART)
    j = tl.arange(0, 16)
    counts = tl.zeros([16], tl.int32)
    while first < items:
        mask = i < items - first
        if listed:
            y = tl.load(value + at + first + i, mask=mask, other=0.0)
        else:
            y = load_y_at(x, add, x_at, add_at, first, i, mask, decay, add_scale, HAS_ADD)
        mag = magnitude(y)
        for number in tl.static_range(11):
            reaching = mask & (mag >= tl.load(state + LIMITS + number))
            counts += tl.where(j == number, tl.sum(reaching.to(tl.int32), axis=0), 0)
        first += step
    tl.atomic_add(state + COUNTS + j, counts, mask=counts > 0, sem="relaxed")


def _threshold(
    p: Plan, s: Sample, a: Lists, x: Tensor, add: Tensor | None, decay: float, add_scale: float, step: int, rank: int
) -> None:
    table = p.tiles.table
    value = scratch("top-k sample", s.count, torch.float32, x.device)
    launch(_reset, p.count, table, s.rows, a.state, a.bins)
    launch(
        _gather, s.tiles.programs, x, add, table, s.tiles.tiles, s.rows, a.state, a.bins, value, decay, add_scale, step,
        rank, HAS_ADD=add is not None, STREAM=STREAM, TILE=TILE,
    )  # fmt: skip
    for r in range(1, ROUNDS.value):
        launch(
            _narrow, s.tiles.programs, table, s.tiles.tiles, s.rows, a.state, a.bins, value, step, rank,
            ROUND=r, STREAM=STREAM, TILE=TILE,
        )  # fmt: skip
    launch(_limits, p.count, table, p.rows, a.state, a.bins)


def _counted(p: Plan, a: Lists, y: Source) -> None:
    w = p.stretches
    launch(
        _count, w.programs, y.x, y.add, w.table, w.tiles, p.rows, a.state, a.value, y.decay, y.add_scale,
        HAS_ADD=y.add is not None, PART=PART, STRETCH=STRETCH,
    )  # fmt: skip


@kernel("topk_sampled_encode")
def topk_sampled_encode(x, add, wire, table, status, decay, add_scale, step, rank):
    check("topk_sampled_encode", x, add, wire, table, status)
    p, s = plan(table, wire.device), _sample(table, wire.device)
    a, y = lists(p, wire.device), source(x, add, decay, add_scale)
    _threshold(p, s, a, x, add, decay, add_scale, step, rank)
    sweep(p, a, x, add, status, decay, add_scale)
    _counted(p, a, y)
    select(p, a, y, wire, None, decided=False)
    write(p, a, y, wire, partial=True)
