"""Dense: the section of a row is its fp32 numbers. Exact, so x becomes zero.

``numel`` fp32 = ``4 * numel`` bytes; 32 bits per element.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .rows import Row, check_encode_rows, decode, load, put, rows, take


def section(row: Row) -> int:
    """Bytes of a row."""
    return 4 * row.numel


def dense_encode(
    x: Tensor | None, add: Tensor | None, wire: Tensor, table: Tensor, status: Tensor, decay: float, add_scale: float
) -> None:
    """``wire <- y = decay*x + add_scale*add``, ``x <- 0``. Without x: ``y = add_scale*add``."""
    check_encode_rows("dense_encode", x, add, wire, table, status, section)
    for row in rows(table):
        if row.numel == 0:
            continue
        put(wire, row.wire, load(x, add, row, status, decay, add_scale))
        if x is not None and row.x >= 0:
            x[row.x : row.x + row.numel] = 0.0


def dense_decode(wires: Tensor, table: Tensor, skip: Tensor, out: Tensor, scale: float, accumulate: bool) -> None:
    """``out (+)= scale * sum of the messages``."""
    decode(
        "dense_decode", wires, table, skip, out, scale, accumulate,
        section, lambda m, row: take(m, row.wire, row.numel, torch.float32),
    )  # fmt: skip
