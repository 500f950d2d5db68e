"""Sections of variable length: closing the gaps between them before sending, and opening them again on arrival.

A section of a ``variable`` compressor begins with a u32, the bytes ``u`` that it takes in all (that word included, a
multiple of 4). In a message it lies at the place that its capacity gives it, so that tables do not depend on the data:

    message  first .. | exact part | section 0, u_0 used | unused | section 1, u_1 used | unused | .. end
    body     first .. | exact part | section 0 | section 1 | ..

``spans`` int64 ``[M, 4]``: (first byte of the body, end of the exact part, end of the message, number of its rows), and
``table`` lists the rows of message 0, then of message 1, ...; column 3 is the section's byte. The sections of a message
begin where its exact part ends and lie back to back; the last one ends where the message ends.
A body comes from a peer: its lengths are checked, all of them, before the first byte is written.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple, cast

import torch
from torch import Tensor


class Span(NamedTuple):
    """A message: where its body begins, where the sections do, and where they end (one more than there are rows)."""

    first: int
    row: int  # the message's first row in the table
    edges: list[int]

    def capacities(self) -> list[int]:
        return [b - a for a, b in pairwise(self.edges)]


def layout(op: str, name: str, total: int, table: Tensor, spans: Tensor) -> list[Span]:
    """The messages that ``table`` and ``spans`` describe; ValueError where they do not fit a buffer of ``total``."""
    starts = cast("list[int]", table[:, 3].tolist())
    found: list[Span] = []
    row = 0
    for m, (first, exact, end, count) in enumerate(cast("list[list[int]]", spans.tolist())):
        where = f"compcomm.{op}: spans row {m} {(first, exact, end, count)}"
        if not 0 <= first <= exact <= end <= total:
            raise ValueError(f"{where}: first <= exact end <= end must lie inside {name} of {total} bytes")
        if not 0 <= count <= len(starts) - row:
            raise ValueError(f"{where}: {count} rows, but the table has {len(starts) - row} left of {len(starts)}")
        edges = [*starts[row : row + count], end]
        if edges[0] != exact:
            raise ValueError(f"{where}: its first section begins at byte {edges[0]}, not where its exact part ends")
        for r, (a, b) in enumerate(pairwise(edges), row):
            if b - a < 4 or (b - a) % 4:
                raise ValueError(
                    f"compcomm.{op}: table row {r}: its section, bytes {a} to {b} of message {m}, has no capacity of "
                    "4, 8, 12, ... bytes; sections lie back to back (column 3 ascends)"
                )
        found.append(Span(first, row, edges))
        row += count
    if row != len(starts):
        raise ValueError(f"compcomm.{op}: spans names {row} rows, but the table has {len(starts)}")
    return found


def _used(op: str, data: Tensor, at: int, room: int, capacity: int, message: int, row: int) -> int:
    """The length that a section states, of at most ``room`` bytes that are there."""
    used = int.from_bytes(bytes(cast("list[int]", data[at : at + 4].tolist())), "little") if room >= 4 else 0
    if used < 4 or used % 4 or used > min(capacity, room):
        raise RuntimeError(
            f"compcomm.{op}: message {message}, table row {row}: the section is corrupt, or its sender uses another "
            f"layout or configuration: it states {used} bytes, its capacity is {capacity}, and {room} are there; "
            "nothing was written"
        )
    return used


def compact(wire: Tensor, table: Tensor, spans: Tensor, out: Tensor, sizes: Tensor) -> None:
    """``out <- body 0 | body 1 | ..`` of the messages in ``wire``, ``sizes[m]`` their bytes."""
    parts: list[Tensor] = []
    bytes_of: list[int] = []
    for m, span in enumerate(layout("compact", "wire", wire.numel(), table, spans)):
        bodies = [wire[span.first : span.edges[0]]]
        for r, (at, capacity) in enumerate(zip(span.edges, span.capacities(), strict=False), span.row):
            bodies.append(wire[at : at + _used("compact", wire, at, capacity, capacity, m, r)])
        bytes_of.append(sum(body.numel() for body in bodies))
        parts += bodies
    total = sum(bytes_of)
    if total > out.numel():
        raise ValueError(f"compcomm.compact: out has {out.numel()} bytes, but the bodies take {total}")
    sizes.copy_(torch.tensor(bytes_of, dtype=torch.int64))
    if parts:
        out[:total] = torch.cat(parts)


def scatter(bodies: Tensor, places: Tensor, table: Tensor, spans: Tensor, wires: Tensor) -> None:
    """The messages again, each section at its place and zeros after it, from the bodies at ``places`` (start, size)."""
    copies: list[tuple[int, int, int, int]] = []  # to, from, bytes, bytes with the zeros
    where = cast("list[list[int]]", places.tolist())
    for m, span in enumerate(layout("scatter", "wires", wires.numel(), table, spans)):
        at, size = where[m]
        if at < 0 or size < 0 or at + size > bodies.numel():
            raise ValueError(
                f"compcomm.scatter: places row {m} {(at, size)} lies outside bodies of {bodies.numel()} bytes"
            )
        end, exact = at + size, span.edges[0] - span.first
        corrupt = f"compcomm.scatter: message {m}, table row {span.row + len(span.edges) - 2}: the body is corrupt: "
        if exact > size:
            raise RuntimeError(f"{corrupt}{size} bytes do not hold its exact part of {exact}; nothing was written")
        copies.append((span.first, at, exact, exact))
        at += exact
        for r, (to, capacity) in enumerate(zip(span.edges, span.capacities(), strict=False), span.row):
            used = _used("scatter", bodies, at, end - at, capacity, m, r)
            copies.append((to, at, used, capacity))
            at += used
        if at != end:
            raise RuntimeError(f"{corrupt}{end - at} bytes are left over; nothing was written")
    for to, at, used, capacity in copies:
        wires[to : to + used] = bodies[at : at + used]
        wires[to + used : to + capacity] = 0
