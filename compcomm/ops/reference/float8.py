"""Eight-bit floating point (E4M3FN or E5M2) under a scale per block.

    N = max|y|                              per block; top = 448 or 57344, the type's largest finite number
    step = N / top,  t = |y| * (top / N)
    q = t rounded in the type, to nearest, ties to even (its subnormals included)
    value = +-q * step,  x <- y - value

Rounding by addition: with C = 2^(23 - mantissa bits) times the power of two at or below t (the least normal one, where
t is less), t + C keeps just the bits that the type has, so q = (t + C) - C, and its code follows from t + C's mantissa.

Section: one fp32 step per block, then a byte per element as the type's own encoding has it (sign, exponent, mantissa),
padded to 4 bytes: ``8 + 32/block`` bits per element. Infinities and NaN are never written. A block whose largest
element is below 2^-100 sends zeros and stays in x; so does one whose step overflows fp32, and that sets ``status[0]``.
Formats: Micikevicius et al. 2022 (arXiv:2209.05433), Table 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .qsgd import TINY
from .rows import (
    Row,
    blocks,
    ceil_div,
    decode,
    encode,
    flag,
    pad4,
    take,
)


class Type(NamedTuple):
    """Mantissa bits, exponent field (of fp32) of the least normal number, largest finite number."""

    mantissa: int
    least: int
    top: float


E4M3, E5M2 = Type(3, 127 - 6, 448.0), Type(2, 127 - 14, 57344.0)


def section(numel: int, block: int) -> int:
    """Bytes of a row."""
    return 4 * ceil_div(numel, block) + pad4(numel)


def round_to(t: Tensor, form: Type) -> tuple[Tensor, Tensor]:
    """fp32 numbers in 0..top -> (rounded, codes without sign), fp32 and int32."""
    shift = 23 - form.mantissa
    power = (t.view(torch.int32) & 0x7F800000).clamp_min(form.least << 23)
    big = power + (shift << 23)
    total = t + big.view(torch.float32)
    code = total.view(torch.int32) - big + (power >> shift) - (form.least << form.mantissa)
    return total - big.view(torch.float32), code


def float8_encode(
    x: Tensor, add: Tensor | None, wire: Tensor, table: Tensor, status: Tensor, decay: float, add_scale: float,
    e5m2: bool, block: int,
) -> None:  # fmt: skip
    """``wire <- (steps, codes)`` of ``y = decay*x + add_scale*add``, ``x <- y - value``."""
    form = E5M2 if e5m2 else E4M3

    def encoded(flat: Tensor, row: Row, r: int) -> tuple[Tensor, ...]:
        y = blocks(flat, block)
        norm = y.abs().amax(1)
        top = torch.full_like(norm, form.top)  # a tensor: dividing by a Python number may become a product
        steps, small = norm / top, norm < TINY
        used = ~small & torch.isfinite(norm) & torch.isfinite(top * steps)
        flag(status, 0, ~used & ~small)
        steps, inverse = torch.where(used, steps, 0.0), torch.where(used, top / norm, 0.0)
        q, codes = round_to((y * inverse[:, None]).abs(), form)
        value = q * steps[:, None]
        negative = y.view(torch.int32) < 0
        codes = torch.where(negative, codes | 128, codes).to(torch.uint8)
        return torch.where(negative, -value, value).view(-1)[: row.numel], steps, codes.view(-1)[: row.numel]

    encode(
        "float8_encode", x, add, wire, table, status, decay, add_scale, lambda row: section(row.numel, block), encoded
    )


def float8_decode(
    wires: Tensor, table: Tensor, skip: Tensor, out: Tensor, scale: float, accumulate: bool, e5m2: bool, block: int,
) -> None:  # fmt: skip
    """``out (+)= scale * sum of q * step``. A code, its exponent in five bits, is a float16: q, or q/256 (E4M3)."""

    def values(message: Tensor, row: Row) -> Tensor:
        count = ceil_div(row.numel, block)
        steps = take(message, row.wire, count, torch.float32)
        codes = take(message, row.wire + 4 * count, row.numel, torch.uint8).to(torch.int32)
        half = codes << 8 if e5m2 else (codes & 127) << 7 | (codes & 128) << 8
        q = half.to(torch.int16).view(torch.float16).to(torch.float32)
        return q * (steps if e5m2 else steps * 256.0).repeat_interleave(block)[: row.numel]

    decode("float8_decode", wires, table, skip, out, scale, accumulate, lambda row: section(row.numel, block), values)
