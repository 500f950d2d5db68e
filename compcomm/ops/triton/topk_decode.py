"""Top-k, the decoders: messages added to, or their elements cleared in, a dense tensor.

Three launches after the fault word is cleared: two that check (``topk_check.py``), and one with a program per 65,536
elements of a row, which clears them where it must and then adds one message after the other, in order. It writes
nothing where a section was found corrupt. Traffic: 4 bytes per element to clear, and per kept element and message 8
bytes of message and 64 of ``out``, which lies in the L2 cache then.

``out`` of half precision is rounded once, after the last message: several messages meet in fp32 scratch of its size.
"""

from __future__ import annotations

from math import gcd

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.rows import Row, check_decode_rows
from ..reference.topk import _corrupt, check_k, section
from ..scratch import scratch
from . import faults, work
from .common import row_of, store, take32, take_f32
from .faults import faulty, remember
from .launch import launch
from .registry import kernel
from .topk_check import Checked, check, take16

CHUNK = 1024
CLEAR = 4096
ADD, ZERO, SCATTER = 0, 1, 2


@triton.jit
def _natural(permuted, piece, grain):
    """The natural index of permuted elements (int64): ``reference/interleave.py``; piece: start, ways, each, stride."""
    ways, each, stride = tl.load(piece + 1), tl.load(piece + 2), tl.load(piece + 3)
    block = permuted // grain
    some = tl.maximum(each, 1)
    found = (block // some * stride) % ways + ways * (block % some)
    return tl.where(block < ways * each, found, block) * grain + permuted % grain


@triton.jit
def _apply(
    wires, messages, stride, table, tiles, blocks, begin, skip, pieces, out, total, scale, grain, word, sticky,
    MODE: tl.constexpr, CLEAR_FIRST: tl.constexpr, WIDEN: tl.constexpr, HAS_SKIP: tl.constexpr, WORDS: tl.constexpr,
    CHUNK: tl.constexpr, CLEAR: tl.constexpr,
):  # fmt: skip
    row, number, x_at, _, numel, wire_at, _, _, k, entry = row_of(table, tiles)
    p = tl.program_id(0)
    if faulty(word):  # places of a corrupt section may lie anywhere: nothing of the call is written
        if p == 0:
            remember(word, sticky)
        return
    first = number * 65536
    room = tl.minimum(numel - first, 65536).to(tl.int32)
    skipped = False
    if HAS_SKIP:
        skipped = tl.load(skip + entry) != 0
    if MODE != 2:
        out += x_at + first
        total += x_at + first
    else:
        out += x_at
        total += x_at
    wide = tl.arange(0, CLEAR)
    if CLEAR_FIRST:
        for c in range(0, room, CLEAR):
            i = c + wide
            if WIDEN:
                tl.store(total + i, tl.zeros([CLEAR], tl.float32), mask=i < room)
            else:
                store(out + i, tl.zeros([CLEAR], tl.float32), i < room)
        tl.debug_barrier()  # other threads add to what was cleared here
    elif WIDEN:
        for c in range(0, room, CLEAR):
            i = c + wide
            tl.store(total + i, tl.load(out + i, mask=i < room, other=0.0).to(tl.float32), mask=i < room)
        tl.debug_barrier()
    if skipped == 0:
        offsets_at = (numel + 65535) // 65536 * 4
        values_at = offsets_at + (2 * k + 3) // 4 * 4
        section_ = wires + wire_at
        # One program has these places for all messages, and within a message they differ (``topk_check``): sums have
        # one order, and need no atomic operation.
        for _message in range(messages):
            count = take32(section_, 4 * number, tl.full([], 1, tl.int1), WORDS).to(tl.int32)
            before = tl.load(begin + p).to(tl.int64)
            for c in range(0, count, CHUNK):
                i = c + tl.arange(0, CHUNK)
                mask = i < count
                at = take16(section_ + offsets_at + 2 * before, 2 * i, mask, WORDS).to(tl.int64)
                if MODE == 1:
                    store(out + at, tl.zeros([CHUNK], tl.float32), mask)
                else:
                    if MODE == 2:
                        piece = pieces + 4 * row
                        at = _natural(tl.load(piece) + first + at, piece, grain)
                    value = take_f32(section_ + values_at + 4 * before, 4 * i, mask, WORDS) * scale
                    if WIDEN:  # rounded to half precision once, and not with every message
                        tl.store(total + at, tl.load(total + at, mask=mask, other=0.0) + value, mask=mask)
                    else:
                        old = tl.load(out + at, mask=mask, other=0.0).to(tl.float32)
                        store(out + at, old + value, mask)
            tl.debug_barrier()  # the next message may meet the same elements
            section_ += stride
            begin += blocks
    if WIDEN:
        for c in range(0, room, CLEAR):
            i = c + wide
            store(out + i, tl.load(total + i, mask=i < room, other=0.0), i < room)


def _decode(
    op: int, wires: Tensor, table: Tensor, skip: Tensor | None, out: Tensor, scale: float, mode: int, clear: bool,
    pieces: Tensor | None = None, grain: int = 1,
) -> None:  # fmt: skip
    c: Checked = check(op, wires, table, skip, out.device)
    w, messages = c.tiles, wires.shape[0]
    widen = messages > 1 and out.dtype is not torch.float32
    total = scratch("top-k total", out.numel(), torch.float32, out.device) if widen else out
    launch(
        _apply, w.programs, wires, messages, wires.stride(0), w.table, w.tiles, w.programs, c.begin, skip, pieces, out,
        total, scale, grain, c.word, c.sticky,
        MODE=mode, CLEAR_FIRST=clear, WIDEN=widen, HAS_SKIP=skip is not None, WORDS=work.words(wires), CHUNK=CHUNK,
        CLEAR=CLEAR, num_warps=8,
    )  # fmt: skip
    faults.raise_on_cpu(out.device)


_DECODE = faults.source(lambda message, row: _corrupt("topk_decode", message, row))
_ZERO = faults.source(lambda message, row: _corrupt("topk_zero", message, row))
_SCATTER = faults.source(lambda _, row: f"compcomm.topk_scatter: table row {row}: the section is corrupt")


@kernel("topk_decode")
def topk_decode(wires, table, skip, out, scale, accumulate):
    work.kept(table, ("topk_decode", "k"), lambda: check_k("topk_decode", table, decoding=True))
    work.check_decode("topk_decode", wires, table, skip, out, section)
    _decode(_DECODE, wires, table, skip, out, scale, ADD, not accumulate)


def _check_own(op: str, wires: Tensor, table: Tensor, out: Tensor) -> None:
    """The reference's errors where nothing is skipped, once per sizes."""

    def checked() -> None:
        check_k(op, table, decoding=True)
        entries = 1 + max((Row(*line).entry for line in table.tolist()), default=0)
        check_decode_rows(op, wires, table.cpu(), torch.empty(entries, dtype=torch.uint8), out, section)

    work.kept(table, (op, wires.shape[1], out.numel()), checked)


@kernel("topk_zero")
def topk_zero(wires, table, out):
    _check_own("topk_zero", wires, table, out)
    _decode(_ZERO, wires, table, None, out, 1.0, ZERO, False)


def _pieces(table: Tensor, pieces: Tensor, out: Tensor, grain: int) -> Tensor:
    """int64 [rows, 4] on the device: first permuted element, ways, blocks to a way, and from way to way."""
    # Follows from two tensors: kept on one, and good for the other as long as that is not written to.
    made: list[tuple[Tensor, int, Tensor]] = work.kept(pieces, ("scatter", out.numel(), grain, out.device), list)
    version = 0 if table.is_inference() else table._version
    if not made or made[0][0] is not table or made[0][1] != version:
        found = _explained(table, pieces, out.numel(), grain).to(out.device, non_blocking=True)
        made[:] = [(table, version, found)]
    return made[0][2]


def _explained(table: Tensor, pieces: Tensor, numel: int, grain: int) -> Tensor:
    lines: list[list[int]] = []
    for r, (line, (whole, start, ways)) in enumerate(zip(table.tolist(), pieces.tolist(), strict=True)):
        row = Row(*line)
        if row.x == -1:
            lines.append([0, 1, 0, 1])
            continue
        if not (whole >= 0 and ways >= 1 and row.x + whole <= numel and 0 <= start <= whole - row.numel):
            raise ValueError(
                f"compcomm.topk_scatter: table row {r}: a piece of {(whole, start, ways)} does not fit {numel} elements"
            )
        stride = max(1, ways * 633 >> 10)
        while gcd(stride, ways) != 1:
            stride += 1
        lines.append([start, ways, max(0, -(-whole // grain) - 1) // ways, stride])
    return torch.tensor(lines, dtype=torch.int64).reshape(-1, 4)


@kernel("topk_scatter")
def topk_scatter(wires, table, pieces, out, scale, grain):
    _check_own("topk_scatter", wires, table, out)
    found = _pieces(table, pieces, out, grain)
    _decode(_SCATTER, wires, table, None, out, scale, SCATTER, False, found, grain)
