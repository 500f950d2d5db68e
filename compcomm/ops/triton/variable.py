"""Squeeze and spread: sections of variable length, packed and unpacked. Layout: ``ops/reference/variable.py``.

Lengths are read on the device. A first launch finds where every part (a message's exact part, or a section) comes from
or goes to, and checks all of it; a second one copies, unless the first found a fault (``faults.py``). Then nothing is
written but ``sizes``, which become 0. A body is a chain of lengths: ``spread`` follows it with a program per message.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import next_power_of_2

from .. import reference
from ..reference.variable import layout
from ..scratch import scratch
from . import faults, work
from .faults import faulty, remember, report
from .launch import launch
from .registry import kernel

TILE = 16384  # bytes to a program
ALL = 0xFFFFF  # in place of a message's number: out is too small


class _Plan(NamedTuple):
    """``parts`` int64 [parts, 4]: (byte in the messages, bytes of capacity, row of the table or -1 for an exact part,
    message); ``edges`` int64 [messages + 1]: each one's first part; ``copies``: the programs that copy."""

    parts: Tensor
    edges: Tensor
    copies: work.Work


def _plan(op: str, name: str, total: int, table: Tensor, spans: Tensor, device: torch.device) -> _Plan:
    """Made once per table and spans that are used together."""

    def make() -> _Plan:
        parts: list[tuple[int, int, int, int]] = []
        edges = [0]
        for m, span in enumerate(layout(op, name, total, table.cpu(), spans.cpu())):
            parts.append((span.first, span.edges[0] - span.first, -1, m))
            parts += [
                (at, capacity, row, m)
                for row, (at, capacity) in enumerate(zip(span.edges, span.capacities(), strict=False), span.row)
            ]
            edges.append(len(parts))
        lines = torch.tensor(parts, dtype=torch.int64).view(-1, 4)
        copies = work.tiles(lines, TILE, device, column=1)
        return _Plan(copies.table, torch.tensor(edges, dtype=torch.int64).to(device, non_blocking=True), copies)

    key = (op, total, 0 if table.is_inference() else table._version)
    held = work.kept(spans, ("parts", op, device), dict)
    if held.get("table") is not table or held["key"] != key:
        held.update(plan=make(), table=table, key=key)
    return held["plan"]


@triton.jit
def _length(data, at, there):
    """The u32 (as int64) at byte ``at``, 0 where it is not there."""
    value = tl.load(data + at, mask=there, other=0).to(tl.int64)
    for b in tl.static_range(1, 4):
        value |= tl.load(data + at + b, mask=there, other=0).to(tl.int64) << (8 * b)
    return value


@triton.jit
def _measure(
    wire, out_bytes, parts, edges, count, messages, found, sizes, word, OP: tl.constexpr, N: tl.constexpr
):  # fmt: skip
    """For every part (place in the bodies, bytes used) to ``found``; for every message the bytes of its body."""
    NONE: tl.constexpr = 0x7FFFFFFFFFFFFFFF
    total = tl.full([], 0, tl.int64)
    fault = tl.full([], NONE, tl.int64)
    for begin in range(0, count, N):
        p = begin + tl.arange(0, N)
        mask = p < count
        at = tl.load(parts + 4 * p, mask=mask, other=0)
        capacity = tl.load(parts + 4 * p + 1, mask=mask, other=0)
        row = tl.load(parts + 4 * p + 2, mask=mask, other=-1)
        message = tl.load(parts + 4 * p + 3, mask=mask, other=0)
        stated = row >= 0
        used = tl.where(stated, _length(wire, at, stated), capacity)
        wrong = stated & ((used < 4) | (used % 4 != 0) | (used > capacity))
        fault = tl.minimum(fault, tl.min(tl.where(wrong, (row << 20) | message, NONE), axis=0))
        used = tl.where(wrong, 0, used)
        ends = total + tl.cumsum(used, axis=0)
        tl.store(found + 2 * p, ends - used, mask=mask)
        tl.store(found + 2 * p + 1, used, mask=mask)
        total += tl.sum(used, axis=0)
    if fault != NONE:
        report(word, OP, fault & 0xFFFFF, fault >> 20)
    elif total > out_bytes:
        fault = total
        report(word, OP, 0xFFFFF, 0)
    tl.store(found + 2 * count, total)
    tl.debug_barrier()
    for begin in range(0, messages, N):
        m = begin + tl.arange(0, N)
        mask = m < messages
        low = tl.load(found + 2 * tl.load(edges + m, mask=mask, other=0), mask=mask, other=0)
        high = tl.load(found + 2 * tl.load(edges + m + 1, mask=mask, other=0), mask=mask, other=0)
        tl.store(sizes + m, tl.where(fault == NONE, high - low, 0), mask=mask)


@triton.jit
def _follow(bodies, bodies_bytes, places, parts, edges, found, word, OP: tl.constexpr):
    """The same for what ``bodies`` hold: a program follows the lengths of a message."""
    m = tl.program_id(0)
    first, end_part = tl.load(edges + m), tl.load(edges + m + 1)
    at, size = tl.load(places + 2 * m), tl.load(places + 2 * m + 1)
    good = (at >= 0) & (size >= 0) & (at <= bodies_bytes - size)
    end = at + size
    exact = tl.load(parts + 4 * first + 1)
    good = good & (exact <= size)
    tl.store(found + 2 * first, at)
    tl.store(found + 2 * first + 1, exact)
    at += exact
    last = first
    for p in range(first + 1, end_part):
        capacity = tl.load(parts + 4 * p + 1)
        used = _length(bodies, at, good & (at <= end - 4))
        tl.store(found + 2 * p, at)
        tl.store(found + 2 * p + 1, used)
        last = tl.where(good, first * 0 + p, last)
        good = good & (used >= 4) & (used % 4 == 0) & (used <= tl.minimum(capacity, end - at))
        at += tl.where(good, used, 0)
    if (good & (at == end)) == 0:
        report(word, OP, m, tl.maximum(tl.load(parts + 4 * last + 2), 0))


@triton.jit
def _copy(source, at, target, to, count, room, WORDS: tl.constexpr, TILE: tl.constexpr):
    """Of a tile: ``count`` bytes, and zeros up to ``room`` of them."""
    words = ((at % 4) + (to % 4) + (count % 4) + (room % 4) == 0) & WORDS
    if words:
        i = tl.arange(0, TILE // 4)
        pointer = (source + at).to(tl.pointer_type(tl.int32)) + i
        value = tl.load(pointer, mask=i * 4 < count, other=0)
        tl.store((target + to).to(tl.pointer_type(tl.int32)) + i, value, mask=i * 4 < room)
    else:
        for begin in range(0, TILE, 2048):
            i = begin + tl.arange(0, 2048)
            value = tl.load(source + at + i, mask=i < count, other=0)
            tl.store(target + to + i, value, mask=i < room)


@triton.jit
def _move(
    source, target, parts, tiles, found, word, sticky, SPREAD: tl.constexpr, WORDS: tl.constexpr, TILE: tl.constexpr
):
    """A tile of a part goes to its place; where lengths are corrupt nothing does."""
    program = tl.program_id(0).to(tl.int64)
    if faulty(word):
        if program == 0:
            remember(word, sticky)
    else:
        p = tl.load(tiles + 2 * program).to(tl.int64)
        begin = tl.load(tiles + 2 * program + 1).to(tl.int64) * TILE
        here, capacity = tl.load(parts + 4 * p) + begin, tl.load(parts + 4 * p + 1) - begin
        there, used = tl.load(found + 2 * p) + begin, tl.load(found + 2 * p + 1) - begin
        if SPREAD:
            _copy(source, there, target, here, used, capacity, WORDS, TILE)
        elif used > 0:
            _copy(source, here, target, there, used, used, WORDS, TILE)


@triton.jit
def _keep(word, sticky):
    if faulty(word):
        remember(word, sticky)


def _moved(source: Tensor, target: Tensor, plan: _Plan, found: Tensor, word: Tensor, *, spread: bool) -> None:
    sticky = faults.sticky(target.device)
    if plan.copies.programs == 0:
        launch(_keep, 1, word, sticky, num_warps=1)
    launch(
        _move, plan.copies.programs, source, target, plan.parts, plan.copies.tiles, found, word, sticky,
        SPREAD=spread, WORDS=work.words(source, target), TILE=TILE,
    )  # fmt: skip


def _explain_squeeze(message: int, row: int) -> str:
    if message == ALL:
        return "compcomm.squeeze: out is too small for the bodies; nothing was written"
    return f"compcomm.squeeze: message {message}, table row {row}: the section is corrupt; nothing was written"


def _explain_spread(message: int, row: int) -> str:
    return (
        f"compcomm.spread: message {message}, table row {row}: the body is corrupt, or its sender uses another layout "
        "or configuration; nothing was written"
    )


SQUEEZE, SPREAD = faults.source(_explain_squeeze), faults.source(_explain_spread)


@kernel("squeeze")
def squeeze(wire, table, spans, out, sizes):
    """``sizes`` may lie on the host: then this waits for the device."""
    device = wire.device
    plan = _plan("squeeze", "wire", wire.numel(), table, spans, device)
    count, messages = len(plan.parts), len(spans)
    found = scratch("parts", 2 * count + 1, torch.int64, device)
    word = faults.fresh(device)
    own = sizes if sizes.device == device else scratch("sizes", messages, torch.int64, device)
    n = min(1024, max(32, next_power_of_2(count)))
    launch(
        _measure, 1, wire, out.numel(), plan.parts, plan.edges, count, messages, found, own, word, OP=SQUEEZE, N=n
    )  # fmt: skip
    _moved(wire, out, plan, found, word, spread=False)
    if own is not sizes:
        sizes.copy_(own)
        faults.raise_now(device)
    try:
        faults.settle(device)
    except RuntimeError:
        reference.variable.squeeze(wire, table, spans, out, sizes)  # says what is wrong
        raise


@kernel("spread")
def spread(bodies, places, table, spans, wires):
    """``places`` may lie on the host or on the device."""
    device = wires.device
    plan = _plan("spread", "wires", wires.numel(), table, spans, device)
    found = scratch("parts", 2 * len(plan.parts), torch.int64, device)
    word = faults.fresh(device)
    if places.device.type == "cpu":
        _check_places(places, bodies.numel())
    launch(
        _follow, len(spans), bodies, bodies.numel(), places.to(device, non_blocking=True), plan.parts, plan.edges,
        found, word, OP=SPREAD, num_warps=1,
    )  # fmt: skip
    _moved(bodies, wires, plan, found, word, spread=True)
    try:
        faults.settle(device)
    except RuntimeError:
        reference.variable.spread(bodies, places, table, spans, wires)  # says what is wrong
        raise


def _check_places(places: Tensor, total: int) -> None:
    for m, (at, size) in enumerate(places.tolist()):
        if at < 0 or size < 0 or at + size > total:
            raise ValueError(f"compcomm.spread: places row {m} {(at, size)} lies outside bodies of {total} bytes")
