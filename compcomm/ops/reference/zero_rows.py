"""Which rows of a matrix are zero, one bit each, and zeros for those that are.

A line of the table is int64[8], as of every format (``rows.py``), for ``numel`` elements of a parameter whose rows have
``k`` elements, the first of which lacks its first ``offset`` elements here: row j is the elements with
``(offset + i) // k == j``. Bit j % 8 of byte ``wire + j // 8`` is row j's; the bits fill whole words of 32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Line(NamedTuple):
    x: int
    add: int
    numel: int
    wire: int
    lead: int
    width: int

    @property
    def many(self) -> int:
        """Rows, the first and the last perhaps in part."""
        return -(-(self.lead + self.numel) // self.width) if self.numel else 0

    @property
    def nbytes(self) -> int:
        return 4 * -(-self.many // 32)


def lines(op: str, table: Tensor, x: Tensor | None, add: Tensor | None, bits: Tensor) -> Iterator[Line]:
    """The table's lines, each checked against its tensors."""
    for r, (at, add_at, numel, wire, lead, _, width, _) in enumerate(table.tolist()):
        line = Line(at, add_at, numel, wire, lead, width)
        fits = numel >= 0 and width > 0 and 0 <= lead < width and wire >= 0
        for tensor, start in ((x, at), (add, add_at)):
            fits &= tensor is None or start < 0 or start + numel <= tensor.numel()
        if not fits or wire + line.nbytes > bits.numel():
            raise ValueError(
                f"compcomm.{op}: line {r} of the table, {line}, does not fit tensors of "
                f"{[None if t is None else t.numel() for t in (x, add, bits)]} elements."
            )
        yield line


def zero_rows_mark(x: Tensor | None, add: Tensor | None, bits: Tensor, table: Tensor) -> None:
    """A bit is 1 where the row has nothing but zeros in ``x`` and in ``add``; where both are absent, too."""
    for line in lines("zero_rows_mark", table, x, add, bits):
        moved = torch.zeros(line.numel, dtype=torch.bool, device=bits.device)
        for tensor, at in ((x, line.x), (add, line.add)):
            if tensor is not None and at >= 0:
                moved |= tensor[at : at + line.numel] != 0
        padded = F.pad(moved, (line.lead, line.many * line.width - line.lead - line.numel))
        zero = F.pad(~padded.view(line.many, line.width).any(1), (0, 8 * line.nbytes - line.many))
        powers = 2 ** torch.arange(8, dtype=torch.int64, device=bits.device)
        found = (zero.view(-1, 8) * powers).sum(1)
        bits[line.wire : line.wire + line.nbytes] = found.to(torch.uint8)


def zero_rows_clear(to: Tensor, bits: Tensor, table: Tensor) -> None:
    """Elements of rows whose bit is 1 become zero; lines that ``to`` lacks (x = -1) are passed over."""
    for line in lines("zero_rows_clear", table, to, None, bits):
        if line.x >= 0 and line.numel:
            raw = bits[line.wire : line.wire + line.nbytes]
            zero = (raw.view(-1, 1) >> torch.arange(8, dtype=torch.uint8, device=raw.device)) & 1
            each = zero.view(-1)[: line.many].repeat_interleave(line.width)
            to[line.x : line.x + line.numel][each[line.lead : line.lead + line.numel] != 0] = 0
