"""Cast: fp32 rounded to bfloat16 or float16, half to even; the rounding error stays in x.

``numel`` 16-bit numbers, padded to 4 bytes; 16 bits per element. A finite number that would round to infinity is sent
as zero, stays in x whole, and sets ``status[0]``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .rows import Row, decode, encode, flag, pad4, take


def section(row: Row) -> int:
    """Bytes of a row."""
    return pad4(2 * row.numel)


def cast_encode(
    x: Tensor, add: Tensor | None, wire: Tensor, table: Tensor, status: Tensor, decay: float, add_scale: float,
    half: bool,
) -> None:  # fmt: skip
    """``wire <- round(y)``, ``x <- y - round(y)``; float16 where ``half``, else bfloat16."""

    def encoded(y: Tensor, row: Row, r: int) -> tuple[Tensor, ...]:
        sent = y.to(torch.float16 if half else torch.bfloat16)
        overflow = torch.isinf(sent)
        flag(status, 0, overflow)
        sent = torch.where(overflow, torch.zeros_like(sent), sent)
        return sent.to(torch.float32), sent

    encode("cast_encode", x, add, wire, table, status, decay, add_scale, section, encoded)


def cast_decode(
    wires: Tensor, table: Tensor, skip: Tensor, out: Tensor, scale: float, accumulate: bool, half: bool,
) -> None:  # fmt: skip
    """``out (+)= scale * sum of the messages``, summed in fp32."""
    dtype = torch.float16 if half else torch.bfloat16

    def values(message: Tensor, row: Row) -> Tensor:
        return take(message, row.wire, row.numel, dtype).to(torch.float32)

    decode("cast_decode", wires, table, skip, out, scale, accumulate, section, values)
