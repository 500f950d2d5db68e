"""Whether top-k sections can be true, found on the device before anything is decoded.

Two launches for all messages: the first adds up the counts of a row's blocks, which says where each block's offsets
begin; the second looks at the offsets. No byte is an address before it was checked. Traffic: 2 bytes per kept element.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.topk import BLOCK
from ..scratch import scratch
from . import faults, work
from .common import take32
from .faults import report
from .launch import launch

CHUNK = 1024


class Checked(NamedTuple):
    """``tiles``: a program per block; ``begin``: int32 [messages, blocks], the place of each block's first element in
    its section; ``word``: what was found wrong."""

    tiles: work.Work
    begin: Tensor
    word: Tensor
    sticky: Tensor


@triton.jit
def take16(wire, at, mask, WORDS: tl.constexpr):
    """16-bit numbers (int32) at bytes ``at`` (0 outside the mask)."""
    if WORDS:
        return tl.load((wire + at).to(tl.pointer_type(tl.uint16)), mask=mask, other=0).to(tl.int32)
    else:
        low = tl.load(wire + at, mask=mask, other=0).to(tl.int32)
        return low | (tl.load(wire + at + 1, mask=mask, other=0).to(tl.int32) << 8)


@triton.jit
def _counts(
    wires, stride, table, firsts, rows, blocks, skip, begin, valid, word, op,
    HAS_SKIP: tl.constexpr, WORDS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    p = tl.program_id(0).to(tl.int64)
    message, row = p // rows, p % rows
    line = table + 8 * row
    numel, wire_at, k = tl.load(line + 2), tl.load(line + 3), tl.load(line + 6)
    used = tl.load(line) >= 0
    if HAS_SKIP:
        used = used & (tl.load(skip + tl.load(line + 7), mask=used, other=1) == 0)
    fine = used
    if used:
        section = wires + message * stride + wire_at
        begin += message * blocks + tl.load(firsts + row)
        first = tl.zeros([], tl.int64)
        sum_ = tl.zeros([], tl.int64)
        worst = tl.zeros([], tl.int64)
        b = tl.arange(0, WIDE)
        while first * 65536 < numel:
            room = tl.minimum(numel - (first + b) * 65536, 65536)
            mask = room > 0
            count = take32(section, 4 * (first + b), mask, WORDS).to(tl.int64)
            worst = tl.maximum(worst, tl.max(tl.where(mask, count - room, 0), axis=0))
            count = tl.where(mask, tl.minimum(count, room), 0)
            tl.store(begin + first + b, (sum_ + tl.cumsum(count, axis=0) - count).to(tl.int32), mask=mask)
            sum_ += tl.sum(count, axis=0)
            first += WIDE
        fine = (worst <= 0) & (sum_ <= k)
        if fine == 0:
            report(word, op, message, row)
    tl.store(valid + p, fine.to(tl.int32))


@triton.jit
def _offsets(
    wires, stride, table, tiles, rows, blocks, begin, valid, word, op, WORDS: tl.constexpr, CHUNK: tl.constexpr
):
    p = tl.program_id(0).to(tl.int64)
    message, block = p // blocks, p % blocks
    row = tl.load(tiles + 2 * block).to(tl.int64)
    number = tl.load(tiles + 2 * block + 1).to(tl.int64)
    if tl.load(valid + message * rows + row) != 0:
        line = table + 8 * row
        numel, wire_at = tl.load(line + 2), tl.load(line + 3)
        section = wires + message * stride + wire_at
        count = take32(section, 4 * number, tl.full([], 1, tl.int1), WORDS).to(tl.int32)
        offsets = section + (numel + 65535) // 65536 * 4 + 2 * tl.load(begin + p).to(tl.int64)
        room = tl.minimum(numel - number * 65536, 65536).to(tl.int32)
        wrong = tl.zeros([], tl.int32)
        for c in range(0, count, CHUNK):
            i = c + tl.arange(0, CHUNK)
            own = take16(offsets, 2 * i, i < count, WORDS)
            after = take16(offsets, 2 * i + 2, i + 1 < count, WORDS)
            bad = ((own >= room) & (i < count)) | ((after <= own) & (i + 1 < count))
            wrong += tl.sum(bad.to(tl.int32), axis=0)
        if wrong > 0:
            report(word, op, message, row)


def check(op: int, wires: Tensor, table: Tensor, skip: Tensor | None, device: torch.device) -> Checked:
    """Looks at every section of the rows that are there and not skipped."""

    def first_blocks() -> Tensor:
        lines = table.cpu().numpy()
        blocks = np.where(lines[:, 0] == -1, 0, -(-lines[:, 2] // BLOCK))
        return torch.from_numpy(np.cumsum(blocks) - blocks).to(device, non_blocking=True)

    w = work.tiles(table, BLOCK, device, decoding=True)
    firsts = work.kept(table, ("top-k blocks", device), first_blocks)
    rows, messages, stride = len(table), wires.shape[0], wires.stride(0)
    begin = scratch("top-k block begin", max(1, messages * w.programs), torch.int32, device)
    valid = scratch("top-k section valid", max(1, messages * rows), torch.int32, device)
    word, words = faults.fresh(device), work.words(wires)
    launch(
        _counts, messages * rows, wires, stride, w.table, firsts, rows, w.programs, skip, begin, valid, word, op,
        HAS_SKIP=skip is not None, WORDS=words, WIDE=512,
    )  # fmt: skip
    launch(
        _offsets, messages * w.programs, wires, stride, w.table, w.tiles, rows, w.programs, begin, valid, word, op,
        WORDS=words, CHUNK=CHUNK,
    )  # fmt: skip
    return Checked(w, begin, word, faults.sticky(device))
