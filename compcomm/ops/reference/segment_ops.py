"""Memory: what feedback schemes do between a bucket and their slabs, row by row.

The table is int64 ``[rows, 4]``: (to, from, numel, index), first elements, a length, and the row's place in
``status[1 + index]``. Any floating-point dtype.
"""

from __future__ import annotations

from math import sqrt
from typing import NamedTuple, cast

import torch
from torch import Tensor

from .rows import blocks, flag, lane_sum


class Span(NamedTuple):
    """One line of the table."""

    to: int
    start: int
    numel: int
    entry: int


def spans(op: str, to: Tensor | None, source: Tensor, table: Tensor, status: Tensor | None) -> list[Span]:
    """The table as named rows, each within its tensors."""
    found = [Span(*line) for line in cast("list[list[int]]", table.tolist())]
    for r, row in enumerate(found):
        where = f"compcomm.{op}: table row {r} {tuple(row)}"
        if row.numel < 0 or row.start < 0 or row.start + row.numel > source.numel():
            raise ValueError(f"{where}: elements {row.start}..{row.start + row.numel} of {source.numel()} are read")
        if to is not None and (row.to < 0 or row.to + row.numel > to.numel()):
            raise ValueError(f"{where}: elements {row.to}..{row.to + row.numel} of {to.numel()} are written")
        if status is not None and not 0 <= row.entry < status.numel() - 1:
            raise ValueError(f"{where}: index (column 3) is {row.entry}, but status has 1 + {status.numel() - 1}")
    return found


def axpby(to: Tensor, source: Tensor, table: Tensor, beta: Tensor, status: Tensor, alpha: float) -> None:
    """``to <- alpha*to + beta[row]*source``, what is not finite in ``source`` counting as zero; alpha = 0 only writes.

    ``status[0]``: something was not finite; ``status[1 + index]``: the row of ``source`` is not zero.
    """
    for row, factor in zip(spans("axpby", to, source, table, status), beta, strict=True):
        x = source[row.start : row.start + row.numel]
        finite = torch.isfinite(x)
        flag(status, 0, ~finite)
        flag(status, 1 + row.entry, x != 0)
        y = torch.where(finite, x, 0.0) * factor
        part = to[row.to : row.to + row.numel]
        part.copy_(y if alpha == 0.0 else part * alpha + y)


def nonzero_segments(source: Tensor, table: Tensor, status: Tensor) -> None:
    """``status[1 + index] |= 1`` where the row has an element that is not zero."""
    for row in spans("nonzero_segments", None, source, table, status):
        flag(status, 1 + row.entry, source[row.start : row.start + row.numel] != 0)


def norms(source: Tensor, table: Tensor, out: Tensor) -> None:
    """``out[row] =`` the L2 norm of the row in fp64, what is not finite counting as zero.

    Squares of fp32 numbers are exact there, and are summed by the fixed tree (``rows.lane_sum``), the row as one block.
    """
    for r, row in enumerate(spans("norms", None, source, table, None)):
        x = source[row.start : row.start + row.numel].to(torch.float64)
        squares = torch.where(torch.isfinite(x), x, 0.0).square()
        total = float(lane_sum(blocks(squares, -(-row.numel // 16) * 16))[0]) if row.numel else 0.0
        out[r] = sqrt(total)  # torch's own is not always the nearest fp64 number


def add_correction(
    x: Tensor, error: Tensor, estimate: Tensor, table: Tensor, status: Tensor, eta: float, scale: float
) -> None:
    """``x <- x + scale*(eta*error - estimate)``, what is not finite in ``x`` counting as zero.

    The rows are (x, error and estimate, numel, index). ``status[0]``: something was not finite.
    """
    for row in spans("add_correction", x, error, table, status):
        part, here = x[row.to : row.to + row.numel], slice(row.start, row.start + row.numel)
        finite = torch.isfinite(part)
        flag(status, 0, ~finite)
        part.copy_(torch.where(finite, part, 0.0) + (error[here] * eta - estimate[here]) * scale)
