"""Payloads as one uint8 buffer: where each parameter's bytes lie, and the header that goes in front.

A message is ``header | exact segments | zero rows | coded segments``, everything little-endian, every section a
multiple of four bytes long. Where the sections lie, and how long a message is at most, follows from the configuration
and the shapes. A peer only says how long a message of variable length is, and that is checked before it is used.

====== ===== ==========================================================================
offset bytes header field
====== ===== ==========================================================================
0      4     magic ``CCM1``
4      1     flags: bit 0 non-finite gradient met, bit 1 the sender failed
5      1     zero
6      2     rank of the sender
8      4     step (modulo 2**32)
12     4     number of the bucket
16     4     length of the message in bytes, as far as it is sent
20     n/8   one bit per segment of the bucket: its gradient is all zero on the sender
====== ===== ==========================================================================

What the zero rows' bits say: ``compcomm.core.zero_rows``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..ops.reference.header import (
    FAILED,
    FAILURE,
    FIELDS,
    MAGIC,
    NONFINITE,
)
from .deferred import Fault, Truth, deferred
from .layout import Layout, Segment
from .random import key
from .zero_rows import Lines, row_width, words

if TYPE_CHECKING:
    from .compressor import Compressor
    from .reducer import Context

ops = torch.ops.compcomm


class PeerError(RuntimeError):
    """A peer's message says that the peer failed, or belongs to another step, bucket or program."""


class Row(NamedTuple):
    """A segment's section: in which message, at which byte of it; and where the bits of its zero rows are, -1: none."""

    message: int
    number: int
    segment: Segment
    wire: int
    bits: int = -1


class Packing:
    """How the segments of a layout travel: as one message, or cut into one message per owner.

    ``splits`` are the messages' lengths in bytes; ``exact`` and ``coded`` the rows of either kind. ``bare``: nothing
    but the sections, for what stays here. ``apart``: the bits of zero rows, ``apart`` bytes of them, are not in the
    message but in a buffer of their own, where messages are sums.
    """

    def __init__(
        self,
        compressor: Compressor,
        parts: tuple[tuple[tuple[int, Segment], ...], ...],
        count: int,
        bare: bool = False,
        apart: bool = False,
    ) -> None:
        self.count, self.apart, self._apart = count, 0, apart
        self.header = 0 if bare else -(-(FIELDS + -(-count // 8)) // 4) * 4
        self.exact: list[Row] = []
        self.coded: list[Row] = []
        splits: list[int] = []
        for message, part in enumerate(parts):
            position = self.header
            for index, segment in part:
                if segment.numel and compressor.exact(segment):
                    self.exact.append(Row(message, index, segment, position))
                    position += segment.numel * 4
            coded: list[Row] = []
            for index, segment in part:
                if segment.numel and not compressor.exact(segment):
                    nbytes = 0 if bare else _bits(compressor, segment)
                    at = self.apart if apart else position
                    coded.append(Row(message, index, segment, 0, at if nbytes else -1))
                    self.apart += nbytes * apart
                    position += nbytes * (not apart)
            for row in coded:
                self.coded.append(row._replace(wire=position))
                position += -(-_section(compressor, row.segment) // 4) * 4
            if position >= 1 << 32 and not bare:
                raise ValueError(
                    f"{compressor!r}: a message of {position} bytes; the header counts to 4 GiB. Use smaller buckets."
                )
            splits.append(position)
        self.compressor = compressor
        self.extent = max((r.segment.stop for r in (*self.exact, *self.coded)), default=0)
        self.splits = tuple(splits)
        self.nbytes = sum(splits)
        self._tables: dict[tuple[object, ...], Tensor] = {}
        self._stacked: dict[tuple[object, ...], tuple[Tensor, tuple[tuple[int, int], ...]]] = {}
        self._gains: dict[int | None, Tensor] = {}
        self._lines: dict[tuple[object, ...], Lines | None] = {}
        self.has_lines = any(row.bits >= 0 for row in self.coded)

    def lines(
        self,
        x: Layout | None,
        add: Layout | None = None,
        *,
        message: int | None = None,
        stride: int | None = None,
    ) -> Lines | None:
        """Where the bits of zero rows are, for the rows of ``table(True, ...)``; None: there are none."""
        if not self.has_lines:
            return None
        cached = (x, add, message, stride)
        if cached not in self._lines:
            bases = np.concatenate(([0], np.cumsum(self.splits)))
            rows = [row for row in self.coded if message is None or row.message == message]
            lines: list[list[int]] = []
            for number, (m, index, s, _, bits) in enumerate(rows):
                if bits >= 0:
                    whole = self._apart or message is not None
                    base = 0 if whole else int(bases[m]) if stride is None else m * stride
                    at = [-1 if layout is None else layout.position(s) for layout in (x, add)]
                    width = row_width(s)
                    lines.append([number, *at, s.numel, base + bits, s.offset % width, 0, width, index])
            self._lines[cached] = Lines(torch.tensor(lines, dtype=torch.int64).view(-1, 9)) if lines else None
        return self._lines[cached]

    def table(
        self,
        coded: bool,
        x: Layout | None,
        add: Layout | None = None,
        *,
        seed: int = 0,
        message: int | None = None,
        stride: int | None = None,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """The int64 table of rows for the kernels (columns: x, add, numel, wire, offset, key, k, index).

        ``message``: only the rows of that message, which then begins the buffer. ``stride``: messages lie that many
        bytes apart instead of end to end. A row that ``x`` (or ``add``) lacks has -1 there.
        """
        cached = (coded, x, add, seed, message, stride, str(device))
        table = self._tables.get(cached)
        if table is None:
            bases = np.concatenate(([0], np.cumsum(self.splits)))
            rows: list[list[int]] = []
            for m, index, s, wire, _ in self.coded if coded else self.exact:
                if message is None or m == message:
                    base = 0 if message is not None else int(bases[m]) if stride is None else m * stride
                    kept = self.compressor.of(s).kept(s.numel) if coded else 0
                    at = [-1 if layout is None else layout.position(s) for layout in (x, add)]
                    rows.append([*at, s.numel, base + wire, s.offset, key(seed, s.name), kept, index])
            table = torch.tensor(rows, dtype=torch.int64).view(-1, 8).to(device)
            self._tables[cached] = table
        return table

    def stacked(
        self, coded: bool, out: Layout, count: int, nbytes: int, *, seed: int, message: int | None, stride: int | None
    ) -> tuple[Tensor, tuple[tuple[int, int], ...]]:
        """The table that decodes ``count`` messages of ``nbytes``, end to end, each into a vector of its own; and the
        spans of elements that a message fills."""
        cached = (coded, out, count, nbytes, seed, message, stride)
        found = self._stacked.get(cached)
        if found is None:
            table = self.table(coded, out, seed=seed, message=message, stride=stride)
            table = table[table[:, 0] >= 0]
            many = table.repeat(count, 1, 1)
            each = torch.arange(count, dtype=torch.int64).view(-1, 1)
            many[:, :, 0] += each * out.numel
            many[:, :, 3] += each * nbytes
            spans: list[tuple[int, int]] = []
            for at, numel in sorted(table[:, [0, 2]].tolist()):
                joined = bool(spans) and spans[-1][1] == at
                spans.append((spans.pop()[0] if joined else at, at + numel))
            found = self._stacked[cached] = many.view(-1, 8), tuple(spans)
        return found

    def gains(self, message: int | None = None) -> Tensor:
        """The factor by which each coded row's decoded values are shrunk or scaled up, fp32."""
        gains = self._gains.get(message)
        if gains is None:
            rows = [r for r in self.coded if message is None or r.message == message]
            gains = torch.tensor(
                [self.compressor.of(r.segment).gain(r.segment.numel) for r in rows], dtype=torch.float32
            )
            self._gains[message] = gains
        return gains


def _bits(compressor: Compressor, segment: Segment) -> int:
    """Bytes that say which rows of a coded segment are zero."""
    if len(segment.shape) < 2 or segment.shape[0] < 2 or compressor.of(segment).keeps_zeros:
        return 0
    width = row_width(segment)
    return words(segment.offset % width + segment.numel, width)


def _section(compressor: Compressor, segment: Segment) -> int:
    try:
        return compressor.of(segment).section(segment.numel)
    except ValueError as error:
        raise ValueError(f"parameter {segment.name!r}: {error}") from error


@lru_cache(maxsize=4096)
def pack(compressor: Compressor, layout: Layout, apart: bool = False) -> Packing:
    """The whole layout in one message; ``apart``: without the bits of zero rows."""
    return Packing(compressor, (tuple(enumerate(layout.segments)),), len(layout.segments), apart=apart)


PIECE = 1 << 20
"""Elements of a parameter that share a section of a coded slot, so that a slot can be read in parts."""


def bare_bytes(compressor: Compressor, numel: int) -> int:
    """Bytes of a parameter of ``numel`` elements in a coded slot."""
    whole, rest = divmod(numel, PIECE)
    sizes = (compressor.section(PIECE) if whole else 0, compressor.section(rest) if rest else 0)
    return whole * (-(-sizes[0] // 4) * 4) + -(-sizes[1] // 4) * 4


@lru_cache(maxsize=4096)
def pack_bare(compressor: Compressor, layout: Layout) -> Packing:
    """The sections of all segments end to end, without a header, one per piece of ``PIECE`` elements: how a coded slot
    lies in memory."""
    for s in layout.segments:
        if compressor.variable or compressor.exact(s):
            raise ValueError(
                f"{compressor!r} keeps no memory of {s.name!r}: sections of fixed length are needed, of every "
                f"parameter. Use one such as QSGD(bits=8, rounding='nearest', dense_below=0)."
            )
    pieces = tuple(
        (i, s.piece(low, min(low + PIECE, s.numel)))
        for i, s in enumerate(layout.segments)
        for low in range(0, s.numel, PIECE)
    )
    return Packing(compressor, (pieces,), len(layout.segments), bare=True)


@lru_cache(maxsize=4096)
def pack_shares(compressor: Compressor, layout: Layout, world: int) -> Packing:
    """One message per owner, with the owner's share of every segment (``Segment.share``)."""
    parts = tuple(
        tuple(
            (i, s.share(rank, world, 1 if compressor.exact(s) else compressor.grain))
            for i, s in enumerate(layout.segments)
        )
        for rank in range(world)
    )
    return Packing(compressor, parts, len(layout.segments))


@lru_cache(maxsize=4096)
def pack_rows(compressor: Compressor, layout: Layout, world: int) -> Packing:
    """One message per owner, with the owner's row of a sharded host's buffer (``Layout.rows``)."""
    rows = layout.rows(world)
    if rows is None:
        raise ValueError(f"{compressor!r}: {layout!r} is not made of {world} equal rows, one per owner.")
    where = {s: i for i, s in enumerate(layout.segments)}
    parts = tuple(tuple((where[s], s) for s in row.segments) for row in rows)
    return Packing(compressor, parts, len(layout.segments))


class Flags(NamedTuple):
    """What the headers of all ranks say together: equal on all ranks."""

    bad: Truth
    skip: Tensor  # uint8 per segment: its gradient is zero on every rank
    zero: bool  # whether any is; where the device alone knows, True
    lengths: tuple[int, ...] = ()  # of the ranks' messages, in bytes

    @staticmethod
    def clean(count: int, lengths: tuple[int, ...] = ()) -> Flags:
        return Flags(False, torch.zeros(count, dtype=torch.uint8), False, lengths)


def write_header(
    message: Tensor, status: Tensor, ctx: Context, *, failed: bool = False, length: int | None = None
) -> None:
    """Fills in the header of a message from the kernels' ``status`` (uint8: non-finite, then nonzero per segment).

    ``length``: what the header calls the message's length, where ``message`` is another part of it.
    """
    write_headers((message,), status, ctx, failed=failed, lengths=None if length is None else (length,))


def write_headers(
    messages: Sequence[Tensor],
    status: Tensor,
    ctx: Context,
    *,
    failed: bool = False,
    lengths: Sequence[int] | None = None,
) -> None:
    """The same for one message per owner: headers that differ in the length alone."""
    if not messages or messages[0].is_meta:
        return
    if deferred(messages[0]) and status.device == messages[0].device:
        at = tuple(m.data_ptr() - messages[0].data_ptr() for m in messages)
        says = tuple(lengths or (m.numel() for m in messages))
        places = _places(at, says)
        extent = max(at) + -(-(FIELDS + -(-(status.numel() - 1) // 8)) // 4) * 4
        wire = messages[0].as_strided((extent,), (1,))
        ops.header_write(wire, status, places, FAILED if failed else 0, ctx.rank, ctx.step, ctx.bucket)
        return
    bits = status.cpu().numpy()
    flags = (NONFINITE if bits[0] else 0) | (FAILED if failed else 0)
    size = FIELDS + -(-(len(bits) - 1) // 8)
    head = np.zeros(-(-size // 4) * 4, np.uint8)
    fields = head[:FIELDS].view("<u4")
    fields[:] = MAGIC, flags | ctx.rank << 16, ctx.step & 0xFFFFFFFF, ctx.bucket & 0xFFFFFFFF, 0
    head[FIELDS:size] = np.packbits(bits[1:] == 0, bitorder="little")
    for i, message in enumerate(messages):
        fields[4] = message.numel() if lengths is None else lengths[i]
        message[: len(head)].copy_(torch.from_numpy(head))


def read_headers(
    messages: Tensor, count: int, ctx: Context, lengths: tuple[int, ...], *, shorter: bool = False
) -> Flags:
    """Checks the headers of all ranks' messages (``[W, stride]``) and combines what they say.

    ``shorter``: ``lengths`` are capacities, and a message may have any length between its header and that.

    Raises:
        PeerError: naming the rank that failed or that is at another step, bucket or configuration.
    """
    if messages.is_meta:
        return Flags.clean(count, lengths)
    if deferred(messages) and not shorter:
        return _read_later(messages, count, ctx, lengths)
    size = FIELDS + -(-count // 8)
    heads = messages[:, :size].contiguous().cpu().numpy()
    fields = heads[:, :FIELDS].copy().view("<u4")
    bad, found = False, fields[:, 4].tolist()
    for rank, (magic, flags, step, bucket, length) in enumerate(fields.tolist()):
        due = length if shorter and messages.shape[1] <= length <= lengths[rank] else lengths[rank]
        here = (MAGIC, rank, ctx.step & 0xFFFFFFFF, ctx.bucket & 0xFFFFFFFF, due)
        if flags & FAILED and (magic, flags >> 16) == (MAGIC, rank):
            raise PeerError(f"rank {rank} failed in step {step}, bucket {bucket}; its own log has the error.")
        if (magic, flags >> 16, step, bucket, length) != here or flags & 0xFFFF & ~(NONFINITE | FAILED):
            raise PeerError(
                f"rank {rank} sent (magic, rank, step, bucket, bytes) = {(magic, flags >> 16, step, bucket, length)} "
                f"where {here} was due: the ranks are out of step, or configured differently."
            )
        bad |= bool(flags & NONFINITE)
    zero = np.bitwise_and.reduce(heads[:, FIELDS:], axis=0)
    if not zero.any():
        return Flags(bad, _zeros(count, messages.device), False, tuple(found))
    skip = torch.from_numpy(np.unpackbits(zero, count=count, bitorder="little")).to(messages.device)
    return Flags(bad, skip, bool(skip.any()), tuple(found))


def _read_later(messages: Tensor, count: int, ctx: Context, lengths: tuple[int, ...]) -> Flags:
    """The same on the device: marks for its kernels, and a fault that the host looks at when the step is over."""
    device, step, bucket = messages.device, ctx.step, ctx.bucket
    heard = torch.empty(1 + count, dtype=torch.uint8, device=device)
    word = torch.empty(1, dtype=torch.int64, device=device)
    ops.header_read(messages, heard, word, _lengths(lengths), step, bucket)

    def explain(fault: int) -> Exception:
        rank, kind = divmod(fault, 4)
        if kind == FAILURE:
            return PeerError(f"rank {rank} failed in step {step}, bucket {bucket}; its own log has the error.")
        return PeerError(
            f"rank {rank} sent, for step {step} and bucket {bucket}, a message of another program, step, bucket or "
            f"length: the ranks are out of step, or configured differently."
        )

    ctx.faults.append(Fault(word, explain))
    return Flags(heard[:1], heard[1:], True)


@lru_cache(maxsize=4096)
def _places(first: tuple[int, ...], second: tuple[int, ...]) -> Tensor:
    """Numbers as a constant table for kernels, a line for each message."""
    return torch.tensor([first, second], dtype=torch.int64).t().contiguous()


@lru_cache(maxsize=4096)
def _lengths(lengths: tuple[int, ...]) -> Tensor:
    return torch.tensor(lengths, dtype=torch.int64)


@lru_cache(maxsize=4096)
def _zeros(count: int, device: torch.device) -> Tensor:
    return torch.zeros(count, dtype=torch.uint8, device=device)
