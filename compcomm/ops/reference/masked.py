"""Rows that a mark on the device chooses: what would be an ``if`` on the host, without waiting for the device.

The table is int64 ``[rows, 4]``: (to, from, numel, index), in elements; a row is treated where ``marks[index]`` (uint8)
is not 0. A row that is not marked costs nothing but a look at its mark.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor


def _masked(table: Tensor, marks: Tensor) -> Iterator[tuple[int, int, int]]:
    chosen = cast("list[int]", marks.tolist())
    for to, source, numel, index in cast("list[list[int]]", table.tolist()):
        if chosen[index]:
            yield to, source, numel


def fill_masked(to: Tensor, table: Tensor, marks: Tensor, value: float) -> None:
    """``to <- value``."""
    for at, _, numel in _masked(table, marks):
        to[at : at + numel] = value


def axpby_masked(to: Tensor, source: Tensor, table: Tensor, marks: Tensor, alpha: float, beta: float) -> None:
    """``to <- alpha*to + beta*source``, where what is not finite in ``source`` counts as zero."""
    for at, other, numel in _masked(table, marks):
        part, given = to[at : at + numel], source[other : other + numel]
        part.copy_(part * alpha + torch.where(torch.isfinite(given), given, 0.0) * beta)
