"""Sparse payloads in plain torch: the truth for ``topk_*`` and ``randk_*``, on any device.

A top-k section of a row of ``n`` elements that keeps ``k`` of them, little-endian:

    ceil(n / 65536) x u32   how many are kept in each block of 65,536 elements
    k x u16                 their offsets inside the block, ascending; padded to 4 bytes
    k x fp32                their values, in the same order

so an element costs 6 bytes and not 8 (fp32 + int32) or 12 (fp32 + int64). A rand-k section is ``k`` fp32 values and no
index at all: every rank draws the same ones from (key, step). A number that arrives from a peer is checked before it is
used as an address.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .philox import philox

BLOCK = 65536
_MAGNITUDE = 0x7FFFFFFF
_LARGEST = torch.finfo(torch.float32).max
_ROUNDS = 6


class Row(NamedTuple):
    """One line of the table: a segment of the flat tensors and its section in the message."""

    start: int
    add: int
    numel: int
    wire: int
    offset: int
    key: int
    kept: int
    index: int


def _rows(table: Tensor) -> list[Row]:
    return [Row(*line) for line in table.tolist()]


def _load_(x: Tensor, add: Tensor | None, row: Row, status: Tensor, decay: float, add_scale: float) -> Tensor:
    """``x <- decay*x + add_scale*add`` on one row, free of non-finite numbers; returns the row (a view of ``x``)."""
    piece = x[row.start : row.start + row.numel]
    y = piece * decay
    gradient = piece
    if add is not None and row.add >= 0:
        gradient = add[row.add : row.add + row.numel]
        safe = torch.where(torch.isfinite(y), y, 0.0)
        y = y + gradient * add_scale
    else:
        safe = torch.zeros_like(y)
    finite = torch.isfinite(y)
    status[0] |= (~finite).any().to(torch.uint8)
    status[1 + row.index] |= (gradient != 0).any().to(torch.uint8)
    return piece.copy_(torch.where(finite, y, safe))


def _bytes(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.uint8)


def topk_bytes(numel: int, k: int) -> tuple[int, int, int]:
    """Where the offsets and the values begin and where the section ends, in bytes from its beginning."""
    offsets = 4 * -(-numel // BLOCK)
    values = offsets + (2 * k + 3) // 4 * 4
    return offsets, values, values + 4 * k


def topk_encode(
    x: Tensor,
    add: Tensor | None,
    wire: Tensor,
    table: Tensor,
    status: Tensor,
    decay: float,
    add_scale: float,
    hint: Tensor | None,
) -> None:
    """Send the ``k`` largest ``|y|`` of each row (ties: the lowest index) and leave the others in ``x``.

    Magnitudes are compared as the bits of ``|y|``: for finite floats the same order, and exact for denormals.
    """
    for number, row in enumerate(_rows(table)):
        y = _load_(x, add, row, status, decay, add_scale)
        magnitude = y.view(torch.int32) & _MAGNITUDE
        largest = torch.sort(magnitude, descending=True, stable=True).indices[: row.kept]
        if hint is not None:
            hint[number] = y[largest[-1]].abs() if row.kept else 0.0
        kept = largest.sort().values
        counts = torch.bincount(kept // BLOCK, minlength=-(-row.numel // BLOCK)).to(torch.int32)
        offsets = torch.stack((kept % 256, kept // 256 % 256), 1).to(torch.uint8).flatten()
        begin, values, end = (row.wire + at for at in topk_bytes(row.numel, row.kept))
        wire[row.wire : begin] = _bytes(counts)
        wire[begin:values] = 0
        wire[begin : begin + 2 * row.kept] = offsets
        wire[values:end] = _bytes(y[kept])
        y[kept] = 0.0


def _topk_indices(wire: Tensor, row: Row, message: int, number: int) -> Tensor:
    """The kept indices of a section, int64 and ascending; RuntimeError where the section cannot be true."""
    begin, _, _ = (row.wire + at for at in topk_bytes(row.numel, row.kept))
    counts = wire[row.wire : begin].clone().view(torch.int32).long()
    pairs = wire[begin : begin + 2 * row.kept].long().view(-1, 2)
    offsets = pairs[:, 0] + 256 * pairs[:, 1]
    blocks = torch.arange(counts.numel(), device=wire.device)
    room = (row.numel - blocks * BLOCK).clamp(max=BLOCK)
    if bool(((counts < 0) | (counts > room)).any()) or int(counts.sum()) != row.kept:
        raise RuntimeError(f"topk: message {message}, row {number}: corrupt: the counts do not add up to {row.kept}")
    indices = torch.repeat_interleave(blocks, counts) * BLOCK + offsets
    if bool((indices[1:] <= indices[:-1]).any()) or bool((indices >= row.numel).any()):
        raise RuntimeError(f"topk: message {message}, row {number}: corrupt: offsets must ascend and stay in the row")
    return indices


def _present(table: Tensor) -> list[tuple[int, Row]]:
    return [(number, row) for number, row in enumerate(_rows(table)) if row.start >= 0]


def _scatter_(
    out: Tensor, rows: list[tuple[Row, list[Tensor], list[Tensor]]], skip: Tensor, scale: float, accumulate: bool
) -> None:
    """``out[i] += v * scale`` in message order, on rows that begin at zero unless ``accumulate``."""
    skipped = skip.tolist()
    for row, indices, values in rows:
        piece = out[row.start : row.start + row.numel]
        if not accumulate:
            piece.zero_()
        if skipped[row.index]:
            continue
        for at, value in zip(indices, values, strict=True):
            piece[at] = piece[at] + value * scale


def _floats(wire: Tensor, begin: int, count: int) -> Tensor:
    return wire[begin : begin + 4 * count].clone().view(torch.float32)


def topk_decode(wires: Tensor, table: Tensor, skip: Tensor, out: Tensor, scale: float, accumulate: bool) -> None:
    """Add every message's kept values; all sections are checked before the first write, so an error leaves ``out``."""
    skipped = skip.tolist()
    rows: list[tuple[Row, list[Tensor], list[Tensor]]] = []
    for number, row in _present(table):
        messages = [] if skipped[row.index] else list(enumerate(wires))
        indices = [_topk_indices(wire, row, message, number) for message, wire in messages]
        values = [_floats(wire, row.wire + topk_bytes(row.numel, row.kept)[1], row.kept) for _, wire in messages]
        rows.append((row, indices, values))
    _scatter_(out, rows, skip, scale, accumulate)


def topk_zero(wires: Tensor, table: Tensor, out: Tensor) -> None:
    """``out[i] = 0`` at the kept indices of the one message: what was sent is cleared, for momentum masks."""
    rows = [(row, _topk_indices(wires[0], row, 0, number)) for number, row in _present(table)]
    for row, indices in rows:
        out[row.start : row.start + row.numel][indices] = 0.0


def _mix(h: Tensor) -> Tensor:
    """The finaliser of MurmurHash3 (Appleby, 2011) on 32-bit words held in int64: a bijection that mixes all bits."""
    h = h ^ (h >> 16)
    h = (h * 0x85EBCA6B) & 0xFFFFFFFF
    h = h ^ (h >> 13)
    h = (h * 0xC2B2AE35) & 0xFFFFFFFF
    return h ^ (h >> 16)


def _round_keys(key: int, offset: int, step: int, device: torch.device) -> list[int]:
    words: list[int] = []
    for counter in (0, 1):
        drawn = philox(torch.tensor([counter], device=device), step, offset, 1, key)
        words += [int(word) for word in drawn]
    return words[:_ROUNDS]


def randk_indices(key: int, numel: int, k: int, offset: int, step: int, device: torch.device | None = None) -> Tensor:
    """The first ``k`` values of a keyed permutation of ``[0, numel)``: ``k`` indices without replacement, int64.

    A Feistel network (Luby, Rackoff, 1988) of 6 rounds permutes the next power of four; values that fall outside
    are walked on until they fall inside (Black, Rogaway, 2002), which leaves a permutation of ``[0, numel)``. So index
    m needs no table, no sort, and no other index. The rank is not in it: all ranks share the mask.
    """
    device = device or torch.device("cpu")
    half = max(1, ((numel - 1).bit_length() + 1) // 2) if numel else 1
    mask = (1 << half) - 1
    keys = _round_keys(key, offset, step, device)
    values = torch.arange(k, dtype=torch.int64, device=device)
    outside = torch.ones_like(values, dtype=torch.bool)
    while bool(outside.any()):
        left, right = values[outside] >> half, values[outside] & mask
        for word in keys:
            left, right = right, left ^ (_mix(right ^ word) & mask)
        values[outside] = left << half | right
        outside = values >= numel
    return values


def randk_encode(
    x: Tensor,
    add: Tensor | None,
    wire: Tensor,
    table: Tensor,
    status: Tensor,
    decay: float,
    add_scale: float,
    gain: Tensor,
    step: int,
) -> None:
    """Send ``gain * y`` at the step's ``k`` shared indices of each row and leave what that does not say in ``x``.

    A product too large for fp32 is sent as zero and reported like any non-finite number.
    """
    for number, row in enumerate(_rows(table)):
        y = _load_(x, add, row, status, decay, add_scale)
        at = randk_indices(row.key, row.numel, row.kept, row.offset, step, x.device)
        value = y[at] * gain[number]
        finite = value.abs() <= _LARGEST
        status[0] |= (~finite).any().to(torch.uint8)
        value = torch.where(finite, value, 0.0)
        y[at] = y[at] - value
        wire[row.wire : row.wire + 4 * row.kept] = _bytes(value)


def randk_decode(
    wires: Tensor, table: Tensor, skip: Tensor, out: Tensor, scale: float, accumulate: bool, step: int
) -> None:
    """Add every message's values at the step's shared indices; the messages carry no address, so nothing can lie."""
    rows: list[tuple[Row, list[Tensor], list[Tensor]]] = []
    for _, row in _present(table):
        at = randk_indices(row.key, row.numel, row.kept, row.offset, step, out.device)
        values = [_floats(wire, row.wire, row.kept) for wire in wires]
        rows.append((row, [at] * len(values), values))
    _scatter_(out, rows, skip, scale, accumulate)
