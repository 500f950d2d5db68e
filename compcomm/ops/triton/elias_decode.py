"""QSGD in Elias codes, decoding. Layout: ``ops/reference/elias.py``.

Where a block begins is known once the one before it is read, so a program goes through the stream of a row and message.
It takes WINDOW bits at a time: what a word would mean is found for every bit as if one began there, and which do begin
follows by doubling: J[p] is where the word after the one at p begins, J[J[p]] the one after that, ...; the n-th word
of the window begins at J applied n times. So a window costs some twenty exchanges, not one step per word.

The levels, plus 128, go to scratch memory, a byte per element and message, and a second launch sums them, unless the
first one found a section that cannot be true (``faults.py``). No byte of a stream is an address before it was checked.
Few rows of few messages use few multiprocessors: cut long parameters into several rows where that counts.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.elias import _check_lengths, corruption, section
from ..scratch import scratch
from . import faults, work
from .common import finish, row_of, store, take_f32
from .faults import faulty, remember, report
from .launch import launch
from .registry import kernel

WINDOW = 1024
TILE = 2048
OP = faults.source(corruption)


@triton.jit
def _bits_at(stream, at, end):
    """The bits from ``at`` (int64, any shape) on, the first one highest, 57 or more; zeros from byte ``end``."""
    word = tl.zeros_like(at).to(tl.uint64)
    byte = at >> 3
    for b in tl.static_range(8):
        word = (word << 8) | tl.load(stream + byte + b, mask=byte + b < end, other=0).to(tl.uint64)
    word = ((word & 0x5555555555555555) << 1) | ((word >> 1) & 0x5555555555555555)
    word = ((word & 0x3333333333333333) << 2) | ((word >> 2) & 0x3333333333333333)
    word = ((word & 0x0F0F0F0F0F0F0F0F) << 4) | ((word >> 4) & 0x0F0F0F0F0F0F0F0F)
    return word << (at & 7).to(tl.uint64)


@triton.jit
def _omega(word):
    """(the number that a word begins with, its bits), int64; the number is 0 where it is none below 2^41."""
    k = tl.full(word.shape, 1, tl.int64)
    length = tl.zeros_like(k)
    more = k > 0
    for _ in tl.static_range(5):
        bit = (word >> 63) != 0
        grow = more & bit & (k <= 40)
        size = tl.where(grow, k + 1, 0)
        k = tl.where(more & bit, tl.where(k <= 40, (word >> tl.minimum(63 - k, 63).to(tl.uint64)).to(tl.int64), 0), k)
        length += tl.where(grow, size, tl.where(more, 1, 0))
        word = word << size.to(tl.uint64)
        more = grow
    return k, length


@triton.jit
def _fixed(stream, at, end, levels, numel, BITS: tl.constexpr, LEVELS: tl.constexpr, WINDOW: tl.constexpr):
    """(bits read, whether all levels are such) of a block of fixed codes, whose levels are written."""
    wrong = tl.zeros([WINDOW], tl.int32)
    for first in range(0, numel, WINDOW):
        i = first + tl.arange(0, WINDOW)
        mask = i < numel
        word = _bits_at(stream, at + i.to(tl.int64) * BITS, end)
        code = tl.zeros([WINDOW], tl.int32)
        for b in tl.static_range(BITS):
            code |= ((word >> (63 - b)) & 1).to(tl.int32) << b
        tl.store(levels + i, (code + (128 - LEVELS)).to(tl.uint8), mask=mask)
        wrong |= (mask & (code > 2 * LEVELS)).to(tl.int32)
    return at + numel.to(tl.int64) * BITS, tl.max(wrong, axis=0) == 0


@triton.jit
def _begins(length, WINDOW: tl.constexpr):
    """Where the words of a window begin, the first at 0: [WINDOW] of them, WINDOW - 1 once they are outside."""
    n = tl.arange(0, WINDOW)
    jump = tl.minimum(n + length, WINDOW - 1).to(tl.int32)
    place = tl.zeros([WINDOW], tl.int32)
    for s in tl.static_range(20):
        if 2**s < WINDOW:
            place = tl.where(((n >> s) & 1) != 0, tl.gather(jump, place, 0), place)
            jump = tl.gather(jump, jump, 0)
    return place


@triton.jit
def _nth(values, n, WINDOW: tl.constexpr):
    """The n-th of these numbers (not negative), as a scalar."""
    return tl.max(tl.where(tl.arange(0, WINDOW) == n, values, 0), axis=0)


@triton.jit
def _dense(stream, at, end, levels, numel, LEVELS: tl.constexpr, WINDOW: tl.constexpr):
    n = tl.arange(0, WINDOW)
    done = tl.zeros([], tl.int32)
    fine = done == 0
    while (done < numel) & fine:
        word = _bits_at(stream, at + n, end)
        k, length = _omega(word)
        size = k - 1
        right = (size >= 0) & (size <= LEVELS)
        some = right & (size > 0)
        minus = (((word << tl.minimum(length, 63).to(tl.uint64)) >> 63) != 0) & some
        length += some.to(tl.int64)
        level = tl.where(right, tl.where(minus, -size, size), 128).to(tl.int32)  # 128: none
        place = _begins(length, WINDOW)
        take = tl.minimum(tl.sum((place < WINDOW - 1).to(tl.int32), axis=0), numel - done)
        level = tl.gather(level, place, 0)
        fine = tl.max(tl.where(n < take, level, 0), axis=0) != 128
        tl.store(levels + done + n, (level + 128).to(tl.uint8), mask=(n < take) & fine)
        at += _nth(place + tl.gather(length, place, 0), take - 1, WINDOW)
        done += take
    return at, fine


@triton.jit
def _sparse(stream, at, end, levels, numel, LEVELS: tl.constexpr, WINDOW: tl.constexpr):
    n = tl.arange(0, WINDOW)
    for first in range(0, numel, WINDOW):
        tl.store(levels + first + n, tl.full([WINDOW], 128, tl.uint8), mask=first + n < numel)
    tl.debug_barrier()  # other threads write levels there
    before = tl.full([], -1, tl.int64)  # the last level's place
    fine = before < 0
    open_ = fine
    while open_ & fine:
        gap, gap_length = _omega(_bits_at(stream, at + n, end))
        word = _bits_at(stream, at + n + gap_length, end)
        size, length = _omega(word << 1)
        right = (size >= 1) & (size <= LEVELS)
        level = tl.where(right, tl.where((word >> 63) != 0, -size, size), 128).to(tl.int32)
        # A gap of 0 is none, and one beyond the block ends there: what follows is of no interest.
        gap = tl.where((gap == 0) | (gap > numel + 1), numel + 2, gap)
        length = tl.where(right, gap_length + 1 + length, gap_length)
        begin = _begins(length, WINDOW)
        inside = begin < WINDOW - 1
        place = before + tl.cumsum(tl.where(inside, tl.gather(gap, begin, 0), 0), axis=0)
        level = tl.gather(level, begin, 0)
        sent = inside & (place < numel)
        open_ = tl.max((inside & (place >= numel)).to(tl.int32), axis=0) == 0
        count = tl.sum(sent.to(tl.int32), axis=0)  # places ascend
        fine = tl.max(tl.where(sent, level, 0), axis=0) != 128
        if open_:
            before = _nth(place + 1, count - 1, WINDOW) - 1
            at += _nth(begin + tl.gather(length, begin, 0), count - 1, WINDOW)
        else:
            fine = fine & (_nth(place + 1, count, WINDOW) - 1 == numel)
            at += _nth(begin + tl.gather(gap_length, begin, 0), count, WINDOW)
        tl.store(levels + place, (level + 128).to(tl.uint8), mask=sent & fine)
    return at, fine


@triton.jit
def _read(
    wires, stride, table, rows, skip, bases, levels, elements, word, op,
    BITS: tl.constexpr, LEVELS: tl.constexpr, BLOCK: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    p = tl.program_id(0).to(tl.int64)
    row, message = p % rows, p // rows
    line = table + 8 * row
    numel = tl.load(line + 2)
    used = (tl.load(line) != -1) & (numel > 0)
    used = used & (tl.load(skip + tl.load(line + 7), mask=used, other=1) == 0)
    if used:
        stream = wires + message * stride + tl.load(line + 3)
        own = levels + message * elements + tl.load(bases + row)
        count = (numel + BLOCK - 1) // BLOCK
        begin = 4 + 4 * count + (count + 3) // 4
        end = tl.zeros([], tl.int64)
        for b in tl.static_range(4):
            end |= tl.load(stream + b).to(tl.int64) << (8 * b)
        room = (begin + (numel * BITS + 7) // 8 + 3) // 4 * 4
        fine = (end % 4 == 0) & (end >= begin) & (end <= room)
        at = begin * 8
        b = tl.zeros([], tl.int64)
        while (b < count) & fine:
            form = (tl.load(stream + 4 + 4 * count + b // 4).to(tl.int32) >> (b % 4 * 2).to(tl.int32)) & 3
            m = tl.minimum(numel - b * BLOCK, BLOCK).to(tl.int32)
            to = own + b * BLOCK
            if form == 0:
                at, fine = _fixed(stream, at, end, to, m, BITS, LEVELS, WINDOW)
            elif form == 1:
                at, fine = _dense(stream, at, end, to, m, LEVELS, WINDOW)
            elif form == 2:
                at, fine = _sparse(stream, at, end, to, m, LEVELS, WINDOW)
            else:
                for first in range(0, m, WINDOW):
                    i = first + tl.arange(0, WINDOW)
                    tl.store(to + i, tl.full([WINDOW], 128, tl.uint8), mask=i < m)
            fine = fine & (at <= end * 8)
            b += 1
        fine = fine & (((at + 7) // 8 + 3) // 4 * 4 == end)
        if fine == 0:
            report(word, op, message, row)


@triton.jit
def _decode(
    wires, messages, stride, table, tiles, skip, bases, levels, elements, out, word, sticky, scale,
    ACCUMULATE: tl.constexpr, WORDS: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row, tile, x_at, _, numel, wire_at, _, _, _, entry = row_of(table, tiles)
    if tl.program_id(0) == 0:
        if faulty(word):
            remember(word, sticky)
    if faulty(word) == 0:
        first = tile * TILE
        i = tl.arange(0, TILE)
        mask = i < numel - first
        total = tl.zeros([TILE], tl.float32)
        if tl.load(skip + entry) == 0:
            own = levels + tl.load(bases + row) + first
            message = wires
            for m in range(messages):
                step = take_f32(message, wire_at + 4 + (first + i) // BLOCK * 4, mask, WORDS)
                v = (tl.load(own + i, mask=mask, other=128).to(tl.int32) - 128).to(tl.float32) * step
                total = tl.where(m == 0, v, total + v)
                message += stride
                own += elements
            finish(out, x_at + first, i, mask, total, scale, ACCUMULATE)
        elif ACCUMULATE == 0:
            store(out + x_at + first + i, total, mask)


@kernel("elias_decode")
def elias_decode(wires, table, skip, out, scale, accumulate, bits, levels, block):
    form = (bits, block)
    work.check_decode("elias_decode", wires, table, skip, out, lambda row: section(row.numel, bits, block), *form)
    work.kept(table, ("elias_decode", *form), lambda: _check_lengths("elias_decode", table.cpu(), bits, block))
    device, messages = out.device, wires.shape[0]

    def make() -> tuple[Tensor, int]:
        lines = table.cpu()
        numel = torch.where(lines[:, 0] == -1, 0, lines[:, 2])
        return (numel.cumsum(0) - numel).to(device, non_blocking=True), int(numel.sum())

    bases, elements = work.kept(table, ("elias bases", device), make)
    w = work.tiles(table, TILE, device, decoding=True)
    q = scratch("elias levels", messages * elements, torch.uint8, device)
    word, sticky = faults.fresh(device), faults.sticky(device)
    launch(
        _read, table.shape[0] * messages, wires, wires.stride(0), w.table, table.shape[0], skip, bases, q, elements,
        word, OP, BITS=bits, LEVELS=levels, BLOCK=block, WINDOW=WINDOW,
    )  # fmt: skip
    launch(
        _decode, w.programs, wires, messages, wires.stride(0), w.table, w.tiles, skip, bases, q, elements, out, word,
        sticky, scale, ACCUMULATE=accumulate, WORDS=work.words(wires), BLOCK=block, TILE=TILE,
    )  # fmt: skip
    faults.settle(device)
