"""QSGD in Elias codes (Alistarh et al. 2017, arXiv:1610.02132, section 3.1 and appendix): the levels of ``qsgd.py``,
sent in as few bits as their sizes allow.

Section of a row of ``n`` elements in ``B = ceil(n / block)`` blocks, little-endian:

    u32             bytes used, this word included: all of the following, up to a multiple of 4
    B x fp32        steps
    ceil(B / 4)     forms, two bits per block, low bits first: 0 fixed, 1 dense, 2 sparse, 3 all zero
    stream          the blocks one after the other, each in its form, no gaps between
    zeros           to the capacity: the size if every block were fixed

Forms of a block of ``m`` levels ``q``, each a sequence of words (``omega.py``), the first word first in the stream:

    fixed     q + levels in ``bits`` bits, low bit first: the codes of plain QSGD
    dense     omega(|q| + 1), then a sign bit (1: negative) where q != 0
    sparse    for each q != 0: omega(gap), sign, omega(|q|), gap = its place less that of the one before (first: from
              -1); then omega(gap) to place m, the end
    all zero  nothing

The shortest form is sent; of equals the one listed first, but all zero wherever it is possible. So a section is never
longer than fixed codes by more than the length word and the forms. Difference from the paper: the form is chosen per
block, a sparse block states its end, and fixed codes bound the length.
A stream comes from a peer: RuntimeError names the message and the row of one that is not exactly as described.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .bits import packed_bytes
from .omega import Reader, omega, stream
from .philox import uniform
from .qsgd import quantise
from .rows import Row, blocks, ceil_div, check_decode_rows, check_encode_rows, load, pad4, put, rows, take

FIXED, DENSE, SPARSE, ZERO = range(4)


def stream_at(numel: int, block: int) -> int:
    """Where in a section the stream begins."""
    count = ceil_div(numel, block)
    return 4 + 4 * count + ceil_div(count, 4)


def section(numel: int, bits: int, block: int) -> int:
    """The capacity of a row in bytes."""
    return pad4(stream_at(numel, block) + packed_bytes(numel, bits))


def _check_lengths(op: str, table: Tensor, bits: int, block: int) -> None:
    for r, row in enumerate(rows(table)):
        if 0 <= row.numel <= 1 << 40 and section(row.numel, bits, block) >= 1 << 32:
            raise ValueError(
                f"compcomm.{op}: table row {r} {tuple(row)}: a section of {section(row.numel, bits, block)} bytes; its "
                "length word counts to 4 GiB. Cut the parameter into several rows."
            )


def elias_encode(
    x: Tensor,
    add: Tensor | None,
    wire: Tensor,
    table: Tensor,
    status: Tensor,
    decay: float,
    add_scale: float,
    gain: Tensor,
    bits: int,
    levels: int,
    norm2: bool,
    stochastic: bool,
    block: int,
    step: int,
    rank: int,
) -> None:
    """``wire <- (length, steps, forms, stream)`` of ``y = decay*x + add_scale*add``, ``x <- y - value``."""
    check_encode_rows("elias_encode", x, add, wire, table, status, lambda row: section(row.numel, bits, block))
    _check_lengths("elias_encode", table, bits, block)
    for row, factor in zip(rows(table), gain, strict=True):
        y = load(x, add, row, status, decay, add_scale)
        noise = uniform(row.key, row.offset, row.numel, step, rank, y.device) if stochastic else None
        if row.numel == 0:
            put(wire, row.wire, torch.tensor([4], dtype=torch.int32, device=wire.device))
            continue
        steps, q = quantise(y, factor, levels, norm2, block, status, noise)
        value = (q.to(torch.float32) * steps[:, None]).view(-1)[: row.numel]
        forms, coded = code(q.long(), row.numel, bits, levels)
        end = stream_at(row.numel, block) + coded.numel()
        used = torch.tensor([pad4(end)], dtype=torch.int32, device=wire.device)
        rest = torch.zeros(section(row.numel, bits, block) - end, dtype=torch.uint8, device=wire.device)
        put(wire, row.wire, used.view(torch.uint8), steps.view(torch.uint8), forms, coded, rest)
        x[row.x : row.x + row.numel] = y - value


def code(q: Tensor, numel: int, bits: int, levels: int) -> tuple[Tensor, Tensor]:
    """Forms (packed) and stream of the levels ``[blocks, block]``, of which the first ``numel`` are real."""
    inside = blocks(torch.ones(numel, dtype=torch.float32, device=q.device), q.shape[1]) > 0
    form, words, lengths = choose(q, inside, bits, levels)
    groups = torch.nn.functional.pad(form, (0, -form.numel() % 4)).view(-1, 4)
    packed = (groups << 2 * torch.arange(4, dtype=torch.int64, device=q.device)).sum(1).to(torch.uint8)
    return packed, stream(words.reshape(-1), lengths.reshape(-1))


def choose(q: Tensor, inside: Tensor, bits: int, levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """The form of each block, and its words and lengths: two places per element (gap, level) and two for the end."""
    candidates = torch.stack([_fixed(q, inside, bits, levels), _dense(q, inside), _sparse(q, inside)])
    totals = candidates[:, 1].sum(-1)  # form, block
    form = torch.where(
        totals == totals.min(0).values, torch.arange(3, dtype=torch.int64, device=q.device)[:, None], 3
    ).amin(0)
    nothing = (q == 0).all(1)
    block = torch.arange(len(q), dtype=torch.int64, device=q.device)
    words, lengths = candidates[form, 0, block], candidates[form, 1, block]
    return torch.where(nothing, ZERO, form), words, torch.where(nothing[:, None], 0, lengths)


def _fixed(q: Tensor, inside: Tensor, bits: int, levels: int) -> Tensor:
    return _pairs(torch.zeros_like(q), torch.zeros_like(q), torch.where(inside, q + levels, 0), inside * bits)


def _dense(q: Tensor, inside: Tensor) -> Tensor:
    words, lengths = omega(q.abs() + 1)
    words, lengths = words | (q < 0).long() << lengths, lengths + (q != 0)
    return _pairs(
        torch.zeros_like(q), torch.zeros_like(q), torch.where(inside, words, 0), torch.where(inside, lengths, 0)
    )


def _sparse(q: Tensor, inside: Tensor) -> Tensor:
    place = torch.arange(q.shape[1], dtype=torch.int64, device=q.device).expand_as(q)
    last = torch.where(q != 0, place, -1).cummax(1).values  # of the nonzero levels so far
    before = torch.nn.functional.pad(last[:, :-1], (1, 0), value=-1)
    gaps, gap_lengths = omega(torch.where(q != 0, place - before, 1))
    sizes, size_lengths = omega(q.abs().clamp(min=1))
    some = (q != 0).long()
    found = _pairs(gaps * some, gap_lengths * some, (sizes << 1 | (q < 0)) * some, (size_lengths + 1) * some)
    found[:, :, -1] = torch.stack(omega(inside.sum(1) - last[:, -1]))
    return found


def _pairs(gaps: Tensor, gap_lengths: Tensor, values: Tensor, value_lengths: Tensor) -> Tensor:
    """(words, lengths) of every block, in the order of the stream, with two more places for the end."""
    parts = [torch.stack((gaps, values), 2).flatten(1), torch.stack((gap_lengths, value_lengths), 2).flatten(1)]
    return torch.nn.functional.pad(torch.stack(parts), (0, 2))


def elias_decode(
    wires: Tensor,
    table: Tensor,
    skip: Tensor,
    out: Tensor,
    scale: float,
    accumulate: bool,
    bits: int,
    levels: int,
    block: int,
) -> None:
    """``out (+)= scale * sum of level * step``, in message order. Everything is read before the first write."""
    check_decode_rows("elias_decode", wires, table, skip, out, lambda row: section(row.numel, bits, block))
    _check_lengths("elias_decode", table, bits, block)
    skipped = [int(entry) for entry in skip.cpu()]
    present = [(r, row) for r, row in enumerate(rows(table)) if row.x != -1 and row.numel]
    totals: list[tuple[Row, Tensor | None]] = []
    for r, row in present:
        total = None
        for m, message in enumerate(() if skipped[row.entry] else wires):
            q = decode_section(
                message[row.wire : row.wire + section(row.numel, bits, block)], row.numel, bits, levels, block
            )
            if q is None:
                raise RuntimeError(
                    f"compcomm.elias_decode: message {m}, table row {r}: the Elias section is corrupt, or its sender "
                    "uses another layout or configuration; this row was not decoded"
                )
            steps = take(message, row.wire + 4, ceil_div(row.numel, block), torch.float32)
            value = q.to(torch.float32).to(out.device) * steps.repeat_interleave(block)[: row.numel]
            total = value if total is None else total + value
        totals.append((row, total))
    for row, total in totals:
        target = out[row.x : row.x + row.numel]
        if total is None:
            if not accumulate:
                target.zero_()
        else:
            target.copy_(target + total * scale if accumulate else total * scale)


def decode_section(data: Tensor, numel: int, bits: int, levels: int, block: int) -> Tensor | None:
    """The levels of a section, or None where it cannot be true."""
    raw = bytes(data.tolist())
    used, at = int.from_bytes(raw[:4], "little"), stream_at(numel, block)
    if used % 4 or not at <= used <= len(raw):
        return None
    forms, found = raw[at - ceil_div(ceil_div(numel, block), 4) : at], []
    reader = Reader(raw[:used], 8 * at)
    for b, first in enumerate(range(0, numel, block)):
        form, count = forms[b // 4] >> b % 4 * 2 & 3, min(block, numel - first)
        some = _READ[form](reader, count, bits, levels)
        if some is None or reader.overrun:
            return None
        found += some
    if max(map(abs, found)) > levels or pad4(ceil_div(reader.at, 8)) != used:
        return None
    return torch.tensor(found, dtype=torch.int32)


def _read_fixed(reader: Reader, count: int, bits: int, levels: int) -> list[int] | None:
    return [reader.take(bits) - levels for _ in range(count)]


def _read_dense(reader: Reader, count: int, bits: int, levels: int) -> list[int] | None:
    found: list[int] = []
    for _ in range(count):
        size = reader.omega() - 1
        if not 0 <= size <= levels:
            return None
        found.append(-size if size and reader.take(1) else size)
    return found


def _read_sparse(reader: Reader, count: int, bits: int, levels: int) -> list[int] | None:
    found = [0] * count
    place = -1
    while True:
        gap = reader.omega()
        place += gap
        if gap == 0 or place > count:
            return None
        if place == count:
            return found
        negative, size = reader.take(1), reader.omega()
        if not 1 <= size <= levels:
            return None
        found[place] = -size if negative else size


def _read_zero(reader: Reader, count: int, bits: int, levels: int) -> list[int] | None:
    return [0] * count


_READ = (_read_fixed, _read_dense, _read_sparse, _read_zero)
