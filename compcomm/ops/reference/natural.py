"""Natural compression: random rounding to a power of two (Horvath et al. 2019, arXiv:1905.10988, section 2).

    t = bits(y * gain) + 128 u + 64        u: the element's 16-bit dither
    value = t without its mantissa,  x <- y - value

Between two powers of two the bits of an fp32 number, read as an integer, grow linearly with the number; so the carry
into the exponent comes with probability m, the mantissa's fraction (a multiple of 2^-16, and never where m is zero).

Section: the exponent fields of all t, a byte each, then their signs, a bit each (1: negative), padded to 4 bytes:
9 bits per element. Code 0 is zero, else 2^(code - 127); denormals go to 0 or 2^-126 by the same rule. What would become
infinite (from 2^127 on) is sent as 2^127 and sets ``status[0]``. Difference from the paper: it writes 1 + 8 bits per
element in a row; here codes and signs lie apart, so that both are whole bytes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .bits import pack, packed_bytes, unpack
from .philox import dither
from .rows import Row, decode, encode, flag, pad4, take

INFINITE, LARGEST, SIGN = 0x7F800000, 0x7F000000, -(2**31)
FIELDS = SIGN | INFINITE


def section(row: Row) -> int:
    """Bytes of a row."""
    return pad4(row.numel + packed_bytes(row.numel, 1))


def natural_encode(
    x: Tensor, add: Tensor | None, wire: Tensor, table: Tensor, status: Tensor, decay: float, add_scale: float,
    gain: Tensor, step: int, rank: int,
) -> None:  # fmt: skip
    """``wire <- (exponents, signs)`` of ``y = decay*x + add_scale*add``, ``x <- y - value``."""

    def encoded(y: Tensor, row: Row, r: int) -> tuple[Tensor, ...]:
        u = dither(row.key, row.offset, row.numel, step, rank, y.device).to(torch.int32)
        t = (y * gain[r]).view(torch.int32) + (u * 128 + 64)
        infinite = (t & INFINITE) == INFINITE
        flag(status, 0, infinite)
        t = torch.where(infinite, (t & SIGN) | LARGEST, t)
        codes, signs = (t >> 23 & 255).to(torch.uint8), (t < 0).to(torch.uint8)
        return (t & FIELDS).view(torch.float32), codes, pack(signs, 1)

    encode("natural_encode", x, add, wire, table, status, decay, add_scale, section, encoded)


def natural_decode(wires: Tensor, table: Tensor, skip: Tensor, out: Tensor, scale: float, accumulate: bool) -> None:
    """``out (+)= scale * sum of +-2^(code - 127)``."""

    def values(message: Tensor, row: Row) -> Tensor:
        codes = take(message, row.wire, row.numel, torch.uint8)
        raw = take(message, row.wire + row.numel, packed_bytes(row.numel, 1), torch.uint8)
        negative = unpack(raw, 1, row.numel) != 0
        size = codes.to(torch.int32) << 23
        return torch.where(negative, size | SIGN, size).view(torch.float32)

    decode("natural_decode", wires, table, skip, out, scale, accumulate, section, values)
