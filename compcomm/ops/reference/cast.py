"""Cast: fp32 rounded to bfloat16 or float16, half to even; the rounding error stays in x.

``numel`` 16-bit numbers, padded to 4 bytes; 16 bits per element. A finite number that would round to infinity is sent
as zero, stays in x whole, and sets ``status[0]``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .rows import Row, check_decode_rows, check_encode_rows, decode, flag, load, pad4, put, rows, take


def section(row: Row) -> int:
    """Bytes of a row."""
    return pad4(2 * row.numel)


def cast_encode(
    x: Tensor,
    add: Tensor | None,
    wire: Tensor,
    table: Tensor,
    status: Tensor,
    decay: float,
    add_scale: float,
    half: bool,
) -> None:
    """``wire <- round(y)``, ``x <- y - round(y)``; float16 where ``half``, else bfloat16."""
    check_encode_rows("cast_encode", x, add, wire, table, status, section)
    for row in rows(table):
        if row.numel == 0:
            continue
        y = load(x, add, row, status, decay, add_scale)
        sent = y.to(torch.float16 if half else torch.bfloat16)
        overflow = torch.isinf(sent)
        flag(status, 0, overflow)
        sent = torch.where(overflow, torch.zeros_like(sent), sent)
        put(wire, row.wire, sent)
        x[row.x : row.x + row.numel] = y - sent.to(torch.float32)


def cast_decode(
    wires: Tensor, table: Tensor, skip: Tensor, out: Tensor, scale: float, accumulate: bool, half: bool
) -> None:
    """``out (+)= scale * sum of the messages``, summed in fp32."""
    check_decode_rows("cast_decode", wires, table, skip, out, section)
    dtype = torch.float16 if half else torch.bfloat16

    def values(message: Tensor, row: Row) -> Tensor:
        return take(message, row.wire, row.numel, dtype).to(torch.float32)

    decode(wires, table, skip, out, scale, accumulate, values)
