"""Matrices turned on their way from one buffer to another: what lies in another order becomes row-major, or back.

A line of the table is int64[5]: (to, from, count, rows, columns), in elements: ``count`` matrices of ``rows`` x
``columns``, end to end from element ``from`` on, arrive transposed from element ``to`` on.
"""

from __future__ import annotations

from torch import Tensor


def turn(to: Tensor, source: Tensor, table: Tensor) -> None:
    """to[b][j][i] = source[b][i][j]."""
    for r, (at, start, count, rows, columns) in enumerate(table.tolist()):
        numel = count * rows * columns
        sizes = min(count, rows, columns, at, start) >= 0
        if not sizes or at + numel > to.numel() or start + numel > source.numel():
            raise ValueError(
                f"compcomm.turn: line {r} of the table, {count} matrices of {rows} x {columns} from element {start} to "
                f"element {at}, does not fit buffers of {source.numel()} and {to.numel()} elements."
            )
        matrices = source[start : start + numel].view(count, rows, columns)
        to[at : at + numel].view(count, columns, rows).copy_(matrices.transpose(1, 2))
