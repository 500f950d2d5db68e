"""Payloads as one uint8 buffer: where each parameter's bytes lie, and the header that goes in front.

A message is ``header | exact segments | zero rows | coded segments``, everything little-endian, every section a
multiple of four bytes long. Where the sections lie, and how long a message is at most, follows from the configuration
and the shapes. A peer only says how long a message of variable length is, and that is checked before it is used.

The header's fields: ``compcomm.core.header``. What the zero rows' bits say: ``compcomm.core.zero_rows``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..ops.reference.header import FIELDS
from .format import Format
from .layout import Layout, Segment
from .random import key
from .zero_rows import Lines, row_width, words

ops = torch.ops.compcomm


class Row(NamedTuple):
    """A segment's section: in which message, at which byte of it; and where the bits of its zero rows are, -1: none."""

    message: int
    number: int
    segment: Segment
    wire: int
    bits: int = -1


class Tables(NamedTuple):
    """Of the rows that travel uncompressed and of the coded ones (None: there are none), the coded rows' scaling
    factors, and where the bits of their zero rows are."""

    exact: Tensor | None
    coded: Tensor | None
    gains: Tensor
    lines: Lines | None


class Packing:
    """How the segments of a layout travel: as one message, or cut into one message per owner.

    ``splits`` are the messages' lengths in bytes; ``exact`` and ``coded`` the rows of either kind, ``exact_bytes`` what
    the former take. ``bare``: nothing but the sections, for what stays here. ``apart``: the bits of zero rows,
    ``apart`` bytes of them, are not in the message but in a buffer of their own, where messages are sums.
    """

    def __init__(
        self,
        compressor: Format,
        parts: tuple[tuple[tuple[int, Segment], ...], ...],
        count: int,
        bare: bool = False,
        apart: bool = False,
    ) -> None:
        self.count, self.apart, self._apart = count, 0, apart
        self.header = 0 if bare else -(-(FIELDS + -(-count // 8)) // 4) * 4
        self.exact: list[Row] = []
        self.exact_bytes = 0
        self.coded: list[Row] = []
        splits: list[int] = []
        # Exact parameters first, then which rows are zero, then coded ones: what has a fixed length lies in front, so
        # that its place does not depend on how many bytes a section of variable length took.
        for message, part in enumerate(parts):
            position = self.header
            for index, segment in part:
                if segment.numel and compressor.exact(segment):
                    self.exact.append(Row(message, index, segment, position))
                    position += segment.numel * 4
                    self.exact_bytes += segment.numel * 4
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
        self._joint: dict[tuple[object, ...], Tables] = {}
        self._stacked: dict[tuple[object, ...], tuple[Tensor, tuple[tuple[int, int], ...]]] = {}
        self._exact_spans: dict[tuple[object, ...], tuple[tuple[int, int, int], ...]] = {}
        self._found: dict[tuple[int, int], Segment] = {}
        self._gains: dict[int | None, Tensor] = {}
        self._lines: dict[tuple[object, ...], Lines | None] = {}
        self.has_lines = any(row.bits >= 0 for row in self.coded)

    def find(self, number: int, offset: int) -> Segment:
        """The coded segment with that number whose first element is ``offset``: of a row, its columns 7 and 4."""
        if not self._found:
            self._found = {(row.number, row.segment.offset): row.segment for row in self.coded}
        return self._found[number, offset]

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

    def tables(
        self, x: Layout | None, add: Layout | None, seed: int, message: int | None, stride: int | None
    ) -> Tables:
        """What kernels need to code a bucket, or to decode messages, in one look-up."""
        key = x, add, seed, message, stride
        found = self._joint.get(key)
        if found is None:
            exact, coded = (
                self.table(kind, x, add, seed=seed, message=message, stride=stride) for kind in (False, True)
            )
            found = self._joint[key] = Tables(
                exact if len(exact) else None,
                coded if len(coded) else None,
                self.gains(message),
                self.lines(x, add, message=message, stride=stride),
            )
        return found

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

    def exact_spans(self, x: Layout, message: int | None) -> tuple[tuple[int, int, int], ...]:
        """Where ``x`` has what travels exact: first element, number of them, index. Memory usually has none of it."""
        found = self._exact_spans.get((x, message))
        if found is None:
            rows = (r for r in self.exact if message is None or r.message == message)
            spans = ((x.position(r.segment), r.segment.numel, r.number) for r in rows)
            found = self._exact_spans[x, message] = tuple(span for span in spans if span[0] >= 0)
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


def _bits(compressor: Format, segment: Segment) -> int:
    """Bytes that say which rows of a coded segment are zero."""
    if len(segment.shape) < 2 or segment.shape[0] < 2 or compressor.of(segment).keeps_zeros:
        return 0
    width = row_width(segment)
    return words(segment.offset % width + segment.numel, width)


def _section(compressor: Format, segment: Segment) -> int:
    try:
        return compressor.of(segment).section(segment.numel)
    except ValueError as error:
        raise ValueError(f"parameter {segment.name!r}: {error}") from error


@lru_cache(maxsize=4096)
def pack(compressor: Format, layout: Layout, apart: bool = False) -> Packing:
    """The whole layout in one message; ``apart``: without the bits of zero rows."""
    return Packing(compressor, (tuple(enumerate(layout.segments)),), len(layout.segments), apart=apart)


@lru_cache(maxsize=4096)
def pack_shares(compressor: Format, layout: Layout, world: int) -> Packing:
    """One message per owner, with the owner's share of every segment (``Segment.share``)."""
    parts = tuple(
        tuple(
            (i, s.share(rank, world, 1 if compressor.exact(s) else compressor.alignment))
            for i, s in enumerate(layout.segments)
        )
        for rank in range(world)
    )
    return Packing(compressor, parts, len(layout.segments))


@lru_cache(maxsize=4096)
def pack_rows(compressor: Format, layout: Layout, host: Layout, world: int) -> Packing:
    """One message per owner, with the segments of ``layout`` that lie in the owner's row of a sharded host's buffer,
    which is laid out as ``host`` (``Layout.equal_rows``)."""
    owner = {(s.name, s.offset): rank for rank, row in enumerate(host.equal_rows(world)) for s in row.segments}
    parts: list[list[tuple[int, Segment]]] = [[] for _ in range(world)]
    for index, s in enumerate(layout.segments):
        parts[owner[s.name, s.offset]].append((index, s))
    return Packing(compressor, tuple(map(tuple, parts)), len(layout.segments))
