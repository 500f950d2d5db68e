"""PowerSGD's arithmetic: a matrix M of a bucket, and the factors of M = P Q^T, kept transposed (rank lines each).

The table of matrices is int64 ``[matrices, 8]``: (residual, bucket, rows, columns, rank, p, q, index). ``residual`` is
the place of M, ``bucket`` that of its gradient, or of its result in ``out`` (-1: not wanted), ``p`` and ``q`` those of
its factors: ``rank`` lines of ``rows`` numbers, and of ``columns``. ``index`` is its place in ``status[1 + index]`` and
``skip[index]``. The factors' own ops take the usual table: (x, _, numel, _, _, key, k, _), k lines of numel numbers.

The two products add in no promised order: their results differ between backends by rounding. What all ranks must agree
on to the bit, they compute from the same sums: Gram-Schmidt, fresh lines and P Q^T are equal everywhere.
"""

from __future__ import annotations

from math import sqrt
from typing import NamedTuple, cast

import torch
from torch import Tensor

from .philox import dither_of
from .rows import Row, flag, rows

STREAM = 6
KEPT = 1e-12
_LANES = 8


class Matrix(NamedTuple):
    """One line of the table of matrices."""

    residual: int
    bucket: int
    rows: int
    columns: int
    rank: int
    p: int
    q: int
    entry: int

    @property
    def numel(self) -> int:
        return self.rows * self.columns


def matrices(
    op: str, residual: Tensor, bucket: Tensor | None, p: Tensor, q: Tensor, table: Tensor, entries: int, *, out: bool
) -> list[Matrix]:
    """The table, each line checked against its tensors."""
    found = [Matrix(*line) for line in cast("list[list[int]]", table.tolist())]
    for r, a in enumerate(found):
        where = f"compcomm.{op}: table row {r} {tuple(a)}"
        if min(a.rows, a.columns, a.rank) < 1 or max(a.numel, a.rows * a.rank, a.columns * a.rank) > 1 << 40:
            size = f"{a.rows} x {a.columns} of rank {a.rank}"
            raise ValueError(f"{where}: a matrix of {size}; all must be 1 or more, and products at most 2^40")
        places = [("residual", a.residual, a.numel, residual), ("p", a.p, a.rank * a.rows, p)]
        places.append(("q", a.q, a.rank * a.columns, q))
        if bucket is not None and not (out and a.bucket == -1):
            places.append(("out" if out else "gradient", a.bucket, a.numel, bucket))
        for name, start, count, tensor in places:
            if start < 0 or start + count > tensor.numel():
                raise ValueError(f"{where}: elements {start}..{start + count} are outside {name} of {tensor.numel()}")
        if not 0 <= a.entry < entries:
            raise ValueError(f"{where}: index (column 7) is {a.entry}, but there are {entries} entries")
    return found


def _lines(factor: Tensor, start: int, count: int, numel: int) -> Tensor:
    return factor[start : start + count * numel].view(count, numel)


def _gather(
    residual: Tensor, gradient: Tensor | None, a: Matrix, status: Tensor, scale: float
) -> Tensor:  # [rows, columns], fp64
    x = residual[a.residual : a.residual + a.numel]
    if gradient is not None:
        added = gradient[a.bucket : a.bucket + a.numel]
        y = x + added * scale
        finite = torch.isfinite(y)
        flag(status, 0, ~finite)
        flag(status, 1 + a.entry, added != 0)
        x.copy_(torch.where(finite, y, x))
    return x.view(a.rows, a.columns).double()


def project(
    residual: Tensor,
    gradient: Tensor | None,
    p: Tensor,
    q: Tensor,
    table: Tensor,
    status: Tensor,
    scale: float,
) -> None:
    """``M <- M + scale * gradient`` (elements that would not be finite stay), ``P = M Q``."""
    for a in matrices("lowrank_project", residual, gradient, p, q, table, status.numel() - 1, out=False):
        m = _gather(residual, gradient, a, status, scale)
        _lines(p, a.p, a.rank, a.rows).copy_(_lines(q, a.q, a.rank, a.columns).double() @ m.T)


def backproject(
    residual: Tensor,
    gradient: Tensor | None,
    p: Tensor,
    q: Tensor,
    table: Tensor,
    status: Tensor,
    scale: float,
) -> None:
    """``M <- M + scale * gradient`` as above, ``Q = M^T P``."""
    for a in matrices("lowrank_backproject", residual, gradient, p, q, table, status.numel() - 1, out=False):
        m = _gather(residual, gradient, a, status, scale)
        _lines(q, a.q, a.rank, a.columns).copy_(_lines(p, a.p, a.rank, a.rows).double() @ m)


def _product(p: Tensor, q: Tensor, a: Matrix) -> Tensor:
    """P Q^T, the terms added in order."""
    left, right = _lines(p, a.p, a.rank, a.rows), _lines(q, a.q, a.rank, a.columns)
    total = left[0][:, None] * right[0][None, :]
    for k in range(1, a.rank):
        total = total + left[k][:, None] * right[k][None, :]
    return total.view(-1)


def reconstruct(
    residual: Tensor,
    out: Tensor | None,
    p: Tensor,
    q: Tensor,
    p_sent: Tensor,
    q_sent: Tensor,
    table: Tensor,
    skip: Tensor,
    scale: float,
    accumulate: bool,
    sign: float,
) -> None:
    """``out (+)= scale * P Q^T``, ``M <- M - sign * P' Q'^T``; a skipped matrix gives zero and stays."""
    skipped = cast("list[int]", skip.tolist())
    for a in matrices("lowrank_reconstruct", residual, out, p, q, table, len(skipped), out=True):
        to = None if out is None or a.bucket < 0 else out[a.bucket : a.bucket + a.numel]
        if skipped[a.entry]:
            if to is not None and not accumulate:
                to.zero_()
            continue
        if to is not None:
            mean = _product(p, q, a) * scale
            to.copy_(to + mean if accumulate else mean)
        x = residual[a.residual : a.residual + a.numel]
        x.copy_(x - _product(p_sent, q_sent, a) * sign)


def factors(op: str, factor: Tensor, table: Tensor) -> list[Row]:
    found = rows(table)
    for r, row in enumerate(found):
        where = f"compcomm.{op}: table row {r} {tuple(row)}"
        if row.numel < 1 or row.k < 1:
            raise ValueError(f"{where}: {row.k} lines (column 6) of {row.numel} numbers (column 2); 1 or more each")
        if row.x < 0 or row.x + row.k * row.numel > factor.numel():
            end = row.x + row.k * row.numel
            raise ValueError(f"{where}: elements {row.x}..{end} are outside factor of {factor.numel()}")
    return found


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Eight interleaved sums, each in order, then halved 4, 2, 1 apart (a cumulative sum adds in order)."""
    t = (a * b).view(-1, _LANES).cumsum(0)[-1]
    for half in (4, 2, 1):
        t = t[:half] + t[half : 2 * half]
    return t[0]


def orthonormal(factor: Tensor, table: Tensor) -> None:
    """Gram-Schmidt of each factor's lines, in fp64. A line of which no more than 1e-6 is new becomes zero."""
    for row in factors("lowrank_orthonormal", factor, table):
        lines = _lines(factor, row.x, row.k, row.numel)
        done: list[Tensor] = []
        for line in lines:
            a = torch.nn.functional.pad(line.double(), (0, -row.numel % _LANES))
            before = _dot(a, a)
            for b in done:
                a = a - _dot(a, b) * b
            after = _dot(a, a)
            size = sqrt(float(after))  # torch's own is not always the nearest fp64 number
            done.append(a / size if bool(after > before * KEPT) else torch.zeros_like(a))
            line.copy_(done[-1][: row.numel])


def refresh(factor: Tensor, table: Tensor, quantiles: Tensor, step: int) -> None:
    """Lines that are all zero are drawn from N(0, 1), keyed by parameter, step and line: equal on all ranks."""
    for row in factors("lowrank_refresh", factor, table):
        lines = _lines(factor, row.x, row.k, row.numel)
        for k in (~lines.any(1)).nonzero().view(-1):
            numbers = dither_of(row.key, 0, row.numel, step, k.view(1), STREAM)[0]
            lines[int(k)] = quantiles[numbers]
