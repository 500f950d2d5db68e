"""Top-k: the k elements of largest magnitude of each row, exactly, with 16-bit offsets.

Section of a row of ``n`` elements (blocks of 65,536), little-endian:

    ceil(n / 65536) x u32   how many elements are kept in each block
    k x u16                 their offsets inside their block, ascending; padded to 4 bytes
    k x fp32                their values, in the same order

``k`` is the capacity. The exact selection fills it; an approximate one may send fewer: then the counts sum to less than
k, the values still begin after k offsets, and what is not used is zero bytes. A sum above k is corrupt.

``48 + 32 * ceil(n / 65536) / k`` bits per element of the capacity. The value is ``y`` itself, so ``x`` becomes 0 at the
kept elements and ``|x - C(x)|^2 <= (1 - k/n) |x|^2`` (Stich, Cordonnier, Jaggi 2018, arXiv:1809.07599, equation 5).
Magnitudes are compared as the bits of ``|y|`` (the order of floats, denormals included) and ties go to the lowest
index, so every backend keeps the same elements. What comes from a peer is checked before it is used as an index.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .rows import Row, ceil_div, check_decode_rows, check_encode_rows, load, pad4, put, rows, take

BLOCK = 65536
MAX_NUMEL = 2**31 - 1


def section(row: Row) -> int:
    """Bytes of a row."""
    return values_at(row) + 4 * row.k


def _offsets_at(row: Row) -> int:
    return 4 * ceil_div(row.numel, BLOCK)


def values_at(row: Row) -> int:
    return _offsets_at(row) + pad4(2 * row.k)


def check_k(op: str, table: Tensor, *, decoding: bool) -> None:
    for r, row in enumerate(rows(table)):
        if decoding and row.x == -1:
            continue
        if not 0 <= row.numel <= MAX_NUMEL:
            raise ValueError(f"compcomm.{op}: table row {r}: numel (column 2) is {row.numel}; 0..2^31-1 is possible")
        if not 0 <= row.k <= row.numel:
            raise ValueError(
                f"compcomm.{op}: table row {r}: k (column 6) is {row.k}, but must lie in 0..numel = {row.numel}"
            )


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
    """``wire <- the k largest |y|`` of ``y = decay*x + add_scale*add``; ``x <- y`` with zeros where it was sent.

    ``hint[row] <- the k-th largest |y|`` (0 where k is 0). What it was before may only make a fast kernel faster.
    """
    check_topk_rows("topk_encode", x, add, wire, table, status)
    for r, row in enumerate(rows(table)):
        y = load(x, add, row, status, decay, add_scale)
        kept = largest(y, row.k)
        if hint is not None:
            hint[r] = y[kept].abs().min() if row.k else 0.0
        send(x, wire, row, y, kept)


def topk_some_encode(
    x: Tensor,
    add: Tensor | None,
    wire: Tensor,
    table: Tensor,
    status: Tensor,
    decay: float,
    add_scale: float,
    counts: Tensor,
    bounds: Tensor,
) -> None:
    """``topk_encode`` of ``counts[row]`` elements, at most the capacity k: for selections that chose a count.

    ``bounds[row]``: a magnitude that the chosen elements reach, if the caller knows one (else 0). Only speed depends on
    it.
    """
    check_topk_rows("topk_some_encode", x, add, wire, table, status)
    numbers = [int(count) for count in counts.cpu()]
    for r, (row, count) in enumerate(zip(rows(table), numbers, strict=True)):
        if not 0 <= count <= row.k:
            raise ValueError(f"compcomm.topk_some_encode: table row {r}: counts is {count}, the capacity k {row.k}")
    for row, count in zip(rows(table), numbers, strict=True):
        y = load(x, add, row, status, decay, add_scale)
        send(x, wire, row, y, largest(y, count))


def check_topk_rows(op: str, x: Tensor, add: Tensor | None, wire: Tensor, table: Tensor, status: Tensor) -> None:
    """ValueError for the first row that does not fit its tensors or has an impossible k."""
    check_k(op, table, decoding=False)
    check_encode_rows(op, x, add, wire, table, status, section)


def sizes(y: Tensor) -> Tensor:
    """Magnitudes as integers that order like them."""
    return y.view(torch.int32) & 0x7FFFFFFF


def largest(y: Tensor, k: int) -> Tensor:
    """The indices of the k largest magnitudes, ascending; ties go to the lowest."""
    return torch.sort(sizes(y), descending=True, stable=True).indices[:k].sort().values


def send(x: Tensor, wire: Tensor, row: Row, y: Tensor, kept: Tensor) -> None:
    """Write the section of the kept elements, and y without them to x."""
    counts = torch.bincount(kept // BLOCK, minlength=ceil_div(row.numel, BLOCK)).to(torch.int32)
    offsets = torch.stack((kept % 256, kept // 256 % 256), dim=1).to(torch.uint8)
    wire[row.wire : row.wire + section(row)] = 0
    put(wire, row.wire, counts)
    put(wire, row.wire + _offsets_at(row), offsets)
    put(wire, row.wire + values_at(row), y[kept])
    y[kept] = 0.0
    x[row.x : row.x + row.numel] = y


def indices(message: Tensor, row: Row, where: str) -> Tensor:
    """The kept indices of a section, ascending; RuntimeError where the section cannot be true."""
    counts = take(message, row.wire, ceil_div(row.numel, BLOCK), torch.int32).long()
    block = torch.arange(counts.numel(), dtype=torch.int64, device=message.device)
    room = (row.numel - block * BLOCK).clamp(max=BLOCK)
    if bool(((counts < 0) | (counts > room)).any()) or int(counts.sum()) > row.k:
        raise RuntimeError(f"{where}: the counts per block do not describe at most {row.k} of {row.numel} elements")
    low, high = (
        take(message, row.wire + _offsets_at(row), 2 * int(counts.sum()), torch.uint8).long().view(-1, 2).unbind(1)
    )
    kept = torch.repeat_interleave(block, counts) * BLOCK + low + 256 * high
    if bool((kept[1:] <= kept[:-1]).any()) or bool((kept >= row.numel).any()):
        raise RuntimeError(f"{where}: the offsets do not ascend inside {row.numel} elements")
    return kept


def _corrupt(op: str, message: int, r: int) -> str:
    return (
        f"compcomm.{op}: message {message}, table row {r}: the top-k section is corrupt, or its sender uses another "
        "layout or configuration; nothing was decoded"
    )


def topk_decode(wires: Tensor, table: Tensor, skip: Tensor, out: Tensor, scale: float, accumulate: bool) -> None:
    """``out[i] = out[i] + v*scale`` for each message in order, on rows that begin at zero unless ``accumulate``.

    All sections are checked before the first write. RuntimeError names the message and the row of a corrupt one.
    """
    check_k("topk_decode", table, decoding=True)
    check_decode_rows("topk_decode", wires, table, skip, out, section)
    skipped = [int(entry) for entry in skip.cpu()]
    present = [(r, row) for r, row in enumerate(rows(table)) if row.x != -1]
    kept = {
        (m, r): indices(message, row, _corrupt("topk_decode", m, r))
        for r, row in present
        if not skipped[row.entry]
        for m, message in enumerate(wires)
    }
    for r, row in present:
        target = out[row.x : row.x + row.numel]
        if not accumulate:
            target.zero_()
        for m, message in enumerate(wires):
            if (at := kept.get((m, r))) is not None:
                target[at] = target[at] + take(message, row.wire + values_at(row), at.numel(), torch.float32) * scale


def _own_indices(op: str, wires: Tensor, table: Tensor, out: Tensor) -> list[tuple[Row, Tensor]]:
    """The rows that ``out`` has and what the one message keeps of each; everything is checked."""
    check_k(op, table, decoding=True)
    skip = torch.zeros(1 + max((row.entry for row in rows(table)), default=0), dtype=torch.uint8)
    check_decode_rows(op, wires, table, skip, out, section)
    present = [(r, row) for r, row in enumerate(rows(table)) if row.x != -1]
    return [(row, indices(wires[0], row, _corrupt(op, 0, r))) for r, row in present]


def topk_zero(wires: Tensor, table: Tensor, out: Tensor) -> None:
    """``out[i] = 0`` at the kept elements of the one message: what was sent is cleared, as momentum masks need."""
    for row, at in _own_indices("topk_zero", wires, table, out):
        out[row.x : row.x + row.numel][at] = 0.0
