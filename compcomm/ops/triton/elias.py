"""QSGD in Elias codes, encoding. Formulas and layout: ``ops/reference/elias.py``.

    quantise   plain QSGD with a byte per code, into scratch memory
    measure    a lane per block: the length of each form, the shortest
    place      per row: where each block begins in the stream; the length word
    write      a lane per block, in words of 32 bits of the stream: it writes those that begin in its block, and takes
               the last one's missing bits from the blocks that follow. So nobody shares a word, wherever blocks begin.
    rest       steps, forms, and zeros behind the stream

x and add pass through memory once, the codes, a byte each, three times.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.elias import _check_lengths, section
from ..reference.omega import omega
from ..reference.qsgd import section as plain_section
from ..scratch import scratch
from . import work
from .common import put32, row_of
from .launch import launch
from .qsgd import qsgd_encode
from .registry import kernel

LANES = 128
CHUNK = 1024
REST = 2048


class Plan(NamedTuple):
    """What follows from the table. ``plain``: the table of the quantiser, whose message has ``nbytes``. ``blocks``
    (int32 [blocks, 2]): row and number of each of ``count`` blocks. ``starts`` (int64 [rows + 1]): blocks of the rows
    before. ``words`` (int64): the omega words of 0 (none), 1, 2 ..., with their lengths from bit 56 on."""

    plain: Tensor
    nbytes: int
    on_device: Tensor
    blocks: Tensor
    count: int
    starts: Tensor
    words: Tensor
    rest: work.Work


def omega_words(table: Tensor, most: int, device: torch.device) -> Tensor:
    """The words of 1 .. most, made once for a table."""

    def make() -> Tensor:
        words, lengths = omega(torch.arange(1, most + 1, dtype=torch.int64))
        return torch.cat((torch.zeros(1, dtype=torch.int64), words | lengths << 56)).to(device, non_blocking=True)

    return work.kept(table, ("omega", most, device), make)


def _plan(table: Tensor, bits: int, block: int, device: torch.device) -> Plan:
    def listed(counts: np.ndarray) -> Tensor:
        rows = np.repeat(np.arange(len(counts)), counts)
        inside = np.arange(len(rows)) - (np.cumsum(counts) - counts)[rows]
        return torch.from_numpy(np.stack((rows, inside), 1).astype(np.int32)).contiguous().to(device, non_blocking=True)

    def before(counts: np.ndarray) -> np.ndarray:
        return np.concatenate(([0], np.cumsum(counts)))

    def make() -> Plan:
        plain = table.cpu().clone()
        numel = plain[:, 2].numpy()
        sizes = before(np.array([plain_section(int(n), 8, block) for n in numel]))
        plain[:, 3] = torch.from_numpy(sizes[:-1])
        blocks = -(-numel // block)
        rest = np.array([section(int(n), bits, block) - 4 for n in numel])
        rest = listed(-(-rest // REST))
        return Plan(
            plain, int(sizes[-1]), plain.to(device), listed(blocks), int(blocks.sum()),
            torch.from_numpy(before(blocks)).to(device), omega_words(table, max(block + 1, 128), device),
            work.Work(work.on(table, device), rest, len(rest)),
        )  # fmt: skip

    return work.kept(table, ("elias", bits, block, device), make)


@triton.jit
def _block(plain, blocks, g, used, BLOCK: tl.constexpr):
    """(row, its elements, the codes' place, how many) of the blocks ``g`` of all rows' (none where not ``used``)."""
    row = tl.load(blocks + 2 * g, mask=used, other=0).to(tl.int64)
    first = tl.load(blocks + 2 * g + 1, mask=used, other=0).to(tl.int64) * BLOCK
    numel = tl.load(plain + 8 * row + 2, mask=used, other=0)
    at = tl.load(plain + 8 * row + 3, mask=used, other=0) + (numel + BLOCK - 1) // BLOCK * 4
    return row, numel, at + first, tl.maximum(tl.minimum(numel - first, BLOCK), 0).to(tl.int32)


@triton.jit
def _length(words, k, mask):
    return (tl.load(words + k, mask=mask, other=0) >> 56).to(tl.int32)


@triton.jit
def _measure(
    codes, plain, blocks, count, words, forms, lengths,
    BITS: tl.constexpr, LEVELS: tl.constexpr, BLOCK: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    g = tl.program_id(0) * LANES + tl.arange(0, LANES)
    used = g < count
    _, _, at, numel = _block(plain, blocks, g, used, BLOCK)
    dense = tl.zeros([LANES], tl.int64)
    sparse = dense
    last = tl.full([LANES], -1, tl.int32)
    for i in range(tl.max(numel, axis=0)):
        inside = i < numel
        q = tl.load(codes + at + i, mask=inside, other=LEVELS).to(tl.int32) - LEVELS
        size = tl.abs(q)
        some = size != 0
        dense += _length(words, size + 1, inside) + some.to(tl.int32)
        sparse += _length(words, i - last, some) + _length(words, size, some) + some.to(tl.int32)
        last = tl.where(some, i, last)
    nothing = last < 0
    sparse += _length(words, numel - last, used)
    fixed = numel.to(tl.int64) * BITS
    best = tl.minimum(fixed, dense)
    form = tl.where(sparse < best, 2, tl.where(dense < fixed, 1, 0))
    tl.store(forms + g, tl.where(nothing, 3, form).to(tl.uint8), mask=used)
    tl.store(lengths + g, tl.where(nothing, 0, tl.minimum(best, sparse)), mask=used)


@triton.jit
def _stream_at(numel, BLOCK: tl.constexpr):
    """Where in a section the stream begins."""
    count = (numel + BLOCK - 1) // BLOCK
    return 4 + 4 * count + (count + 3) // 4


@triton.jit
def _place(wire, table, starts, lengths, begins, totals, BLOCK: tl.constexpr, CHUNK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    start = tl.load(starts + row)
    end = tl.load(starts + row + 1)
    total = tl.zeros([], tl.int64)
    for b in range(start, end, CHUNK):
        at = b + tl.arange(0, CHUNK)
        n = tl.load(lengths + at, mask=at < end, other=0)
        tl.store(begins + at, total + tl.cumsum(n, axis=0) - n, mask=at < end)
        total += tl.sum(n, axis=0)
    tl.store(totals + row, total)
    bytes_ = _stream_at(tl.load(table + 8 * row + 2), BLOCK) + (total + 7) // 8
    wire_at = tl.load(table + 8 * row + 3)
    put32(wire, wire_at + tl.arange(0, 1), ((bytes_ + 3) // 4 * 4 + tl.zeros([1], tl.int64)).to(tl.uint32), True, False)


@triton.jit
def _emit(wire, at, unit, first, end, bits, full):
    """Writes the words of the stream numbered ``unit`` where ``full``, none before ``first``; bytes below ``end``."""
    mine = full & (unit >= first)
    for b in tl.static_range(4):
        byte = ((bits >> (8 * b)) & 0xFF).to(tl.uint8)
        tl.store(wire + at + unit * 4 + b, byte, mask=mine & (unit * 4 + b < end))


@triton.jit
def _append(wire, at, unit, first, end, bits, have, piece, length):
    """``length`` <= 32 more bits (int64) behind the ``have`` < 32 that wait."""
    bits |= piece << have
    have += length
    full = have >= 32
    _emit(wire, at, unit, first, end, bits, full)
    return unit + full.to(tl.int64), tl.where(full, (bits >> 32) & 0xFFFFFFFF, bits), tl.where(full, have - 32, have)


@triton.jit
def _write(
    wire, table, codes, plain, blocks, count, starts, words, forms, begins, lengths,
    BITS: tl.constexpr, LEVELS: tl.constexpr, BLOCK: tl.constexpr, LONG: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    g = tl.program_id(0) * LANES + tl.arange(0, LANES)
    used = g < count
    row, whole, q_at, numel = _block(plain, blocks, g, used, BLOCK)
    stream = _stream_at(whole, BLOCK)
    at = tl.load(table + 8 * row + 3, mask=used, other=0) + stream
    room = (stream + (whole * BITS + 7) // 8 + 3) // 4 * 4 - stream  # bytes to the section's end
    stop = tl.load(starts + row + 1, mask=used, other=0)  # the first block of the next row

    begin = tl.load(begins + g, mask=used, other=0)
    end = begin + tl.load(lengths + g, mask=used, other=0)
    first = (begin + 31) // 32
    goal = (end + 31) // 32  # words first .. goal - 1 are this lane's
    unit = begin // 32
    have = begin % 32
    bits = tl.zeros([LANES], tl.int64)
    i = tl.zeros([LANES], tl.int32)
    last = i - 1
    form = tl.load(forms + g, mask=used, other=3).to(tl.int32)
    active = used & (first * 32 < end)
    while tl.max(active.to(tl.int32), axis=0) != 0:
        inside = active & (i < numel) & (form != 3)
        q = tl.load(codes + q_at + i, mask=inside, other=LEVELS).to(tl.int32) - LEVELS
        size = tl.abs(q)
        minus = (q < 0).to(tl.int64)
        sparse = active & (form == 2)
        some = inside & (size != 0)
        gap_due = sparse & (some | (i == numel))
        gap = tl.load(words + tl.where(i == numel, numel, i) - last, mask=gap_due, other=0)
        gap_length = gap >> 56
        gap &= 0xFFFFFFFFFFFFFF
        if LONG:
            unit, bits, have = _append(
                wire, at, unit, first, room, bits, have, gap & 0xFFFFFFFF, tl.minimum(gap_length, 32)
            )
            unit, bits, have = _append(
                wire, at, unit, first, room, bits, have, gap >> 32, tl.maximum(gap_length - 32, 0)
            )
        else:
            unit, bits, have = _append(wire, at, unit, first, room, bits, have, gap, gap_length)
        dense = inside & (form == 1)
        word = tl.load(words + size + dense.to(tl.int32), mask=dense | (sparse & some), other=0)
        length = word >> 56
        word &= 0xFFFFFFFFFFFFFF
        signed = length + some.to(tl.int64)
        piece = tl.where(dense, word | (minus << length), (word << 1) | minus)
        piece = tl.where(form == 0, (q + LEVELS).to(tl.int64), piece)
        signed = tl.where(form == 0, BITS, signed)
        due = inside & ((form != 2) | some)
        unit, bits, have = _append(
            wire, at, unit, first, room, bits, have, tl.where(due, piece, 0), tl.where(due, signed, 0)
        )
        last = tl.where(some, i, last)
        i += active.to(tl.int32)
        over = active & ((form == 3) | (i >= numel + sparse.to(tl.int32)))
        g += over.to(tl.int32)
        active = active & (g < stop) & (unit < goal)
        fresh = over & active
        q_at = tl.where(fresh, q_at + numel, q_at)
        form = tl.where(fresh, tl.load(forms + g, mask=fresh, other=3).to(tl.int32), form)
        following = tl.load(blocks + 2 * g + 1, mask=fresh, other=0).to(tl.int64) * BLOCK
        numel = tl.where(fresh, tl.minimum(whole - following, BLOCK).to(tl.int32), numel)
        i = tl.where(fresh, 0, i)
        last = tl.where(fresh, -1, last)
    _emit(wire, at, unit, first, room, bits, used & (first * 32 < end) & (unit < goal) & (have > 0))


@triton.jit
def _rest(
    wire, table, tiles, codes, plain, starts, forms, totals, BITS: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    """Steps, forms, and zeros behind the stream."""
    row, tile, _, _, numel, wire_at, _, _, _, _ = row_of(table, tiles)
    start = tl.load(starts + row)
    count = tl.load(starts + row + 1) - start
    stream = 4 * count + (count + 3) // 4
    room = (4 + stream + (numel * BITS + 7) // 8 + 3) // 4 * 4 - 4
    i = tile * TILE + tl.arange(0, TILE)
    step = tl.load(codes + tl.load(plain + 8 * row + 3) + i, mask=i < 4 * count, other=0)
    packed = tl.zeros([TILE], tl.uint8)
    for part in tl.static_range(4):
        b = (i - 4 * count) * 4 + part
        packed |= tl.load(forms + start + b, mask=(b >= 0) & (b < count), other=0) << (2 * part)
    end = stream + (tl.load(totals + row) + 7) // 8
    value = tl.where(i < 4 * count, step, packed)
    tl.store(wire + wire_at + 4 + i, value, mask=(i < room) & ((i < stream) | (i >= end)))


@kernel("elias_encode")
def elias_encode(
    x, add, wire, table, status, decay, add_scale, gain, bits, levels, norm2, stochastic, block, step, rank
):  # fmt: skip
    form = (bits, block)
    work.check_encode("elias_encode", x, add, wire, table, status, lambda row: section(row.numel, bits, block), *form)
    work.kept(table, ("elias_encode", *form), lambda: _check_lengths("elias_encode", table.cpu(), bits, block))
    device, rows = x.device, table.shape[0]
    p = _plan(table, bits, block, device)
    codes = scratch("elias codes", p.nbytes, torch.uint8, device)
    forms = scratch("elias forms", p.count, torch.uint8, device)
    lengths, begins = (scratch(f"elias {n}", p.count, torch.int64, device) for n in ("lengths", "begins"))
    totals = scratch("elias totals", rows, torch.int64, device)
    qsgd_encode(x, add, codes, p.plain, status, decay, add_scale, gain, 8, levels, norm2, stochastic, block, step, rank)
    on_device, lanes, shape = work.on(table, device), -(-p.count // LANES), {"BITS": bits, "BLOCK": block}
    launch(
        _measure, lanes, codes, p.on_device, p.blocks, p.count, p.words, forms, lengths, **shape, LEVELS=levels,
        LANES=LANES,
    )  # fmt: skip
    launch(_place, rows, wire, on_device, p.starts, lengths, begins, totals, BLOCK=block, CHUNK=CHUNK)
    launch(
        _write, lanes, wire, on_device, codes, p.on_device, p.blocks, p.count, p.starts, p.words, forms, begins,
        lengths, **shape, LEVELS=levels, LONG=block >= 1 << 20, LANES=LANES,
    )  # fmt: skip
    w = p.rest
    launch(_rest, w.programs, wire, w.table, w.tiles, codes, p.on_device, p.starts, forms, totals, **shape, TILE=REST)
