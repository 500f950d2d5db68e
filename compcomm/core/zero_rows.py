"""Rows of zeros, which stay zeros.

A row is an index of a parameter's first dimension. Embeddings of tokens that never came, padding,
positions beyond the length and pruned weights are rows of zeros, and codes that have no zero (one bit, two means,
levels, rotated ones) would move them. So where a compressor does not keep zeros (``Compressor.keeps_zeros``) a bit per
row of a matrix says that gradient and memory are zero there: it is received as zero, and nothing is left of it. In
words of 32 bits per coded segment, low bit first; a piece's first and last row may be in part.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from ..ops.work import kept
from .deferred import deferred
from .layout import Segment


def row_width(segment: Segment) -> int:
    """Elements of a row of the parameter."""
    return prod(segment.shape[1:])


def words(numel: int, width: int) -> int:
    """Bytes of the bits of so many elements' rows."""
    rows = -(-numel // width)
    return 4 * -(-rows // 32)


class Lines:
    """The bits of zero rows of some coded rows: ``table`` for the kernels (``ops/reference/zero_rows.py``), and how
    messages with such bits are decoded."""

    def __init__(self, lines: Tensor) -> None:
        self.table = lines[:, 1:].contiguous()
        self._rows = lines[:, 0].tolist()
        places: list[Tensor] = []
        owners: list[Tensor] = []
        for i, (_, _, _, numel, wire, lead, _, width, _) in enumerate(lines.tolist()):
            nbytes = words(lead + numel, width)
            places.append(torch.arange(wire, wire + nbytes, dtype=torch.int64))
            owners.append(torch.full((nbytes,), i, dtype=torch.int64))
        self._places, self._owners = torch.cat(places), torch.cat(owners)

    def split(self, said: Tensor, table: Tensor, accumulate: bool) -> Split:
        """How the rows of ``table`` are decoded from messages that say ``said[W, bytes]``.

        A row that is zero in all messages is decoded with the others and cleared, unless the sum is added to what is
        there. Where messages differ, which is a function of the parameter's own bits and of nothing beside it, each is
        decoded by itself. On a device, which would have to be waited for, all that may differ are.
        """
        if deferred(said):
            return self._kept(tuple(range(len(self._rows))), False, table)
        found = said[:, self._places]
        some = found != 0
        if not bool(some.any()):
            return self._kept((), False, table)
        apart = some.any(0) if accumulate else (found != found[0]).any(0)
        which = tuple(self._owners[apart].unique().tolist()) if bool(apart.any()) else ()
        return self._kept(which, not accumulate, table)

    def _kept(self, which: tuple[int, ...], clear: bool, table: Tensor) -> Split:
        """The tables for that choice of lines. The last choices are kept on ``table``, whose rows they are (and so of
        its seed); many models have few."""
        splits: dict[tuple[tuple[int, ...], bool], Split] = kept(table, "zero rows", dict)
        made = splits.pop((which, clear), None)
        if made is None:
            if len(splits) >= 16:
                del splits[next(iter(splits))]
            made = self._make(which, clear, table)
        splits[which, clear] = made
        return made

    def _make(self, which: tuple[int, ...], clear: bool, table: Tensor) -> Split:
        apart = torch.zeros(len(self._rows), dtype=torch.bool)
        apart[list(which)] = True
        rows = torch.zeros(len(table), dtype=torch.bool)
        rows[[self._rows[i] for i in which]] = True
        here = apart & (self.table[:, 0] >= 0)
        chosen = table[rows]
        spans: list[tuple[int, int]] = []
        for at, numel in sorted(chosen[chosen[:, 0] >= 0][:, [0, 2]].tolist()):
            joined = bool(spans) and spans[-1][1] == at
            spans.append((spans.pop()[0] if joined else at, at + numel))
        return Split(
            chosen if spans else chosen[:0],
            table if not which else table[~rows],
            self.table[here],
            self.table[~apart] if clear and which else self.table if clear else None,
            tuple(spans),
        )


class Split(NamedTuple):
    """Coded rows that are decoded message by message (``table``, their bits' ``lines``, where they go), and the
    ``rest``; ``cleared``: the lines of those in the rest that are cleared afterwards."""

    table: Tensor
    rest: Tensor
    lines: Tensor
    cleared: Tensor | None
    spans: tuple[tuple[int, int], ...]
