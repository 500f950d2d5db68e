"""Ternary: minus one, zero or one times the block's size (TernGrad; Wen et al. 2017, arXiv:1705.07878, equation 1).

    size = max|y|   or, with clip:  min(max|y|, clip * sqrt((sum y^2) / n))        per block
    q = floor(y/size + U)   clamped to -1..1
    value = q * size * gain,  x <- y - value

Section: one fp32 ``size * gain`` per block, then all ``q + 1`` as digits of base three (``trits.py``), padded to 4
bytes: ``1.6 + 32/block`` bits per element. Blocks whose size is below 2^-100 send zeros and stay in x; so do those
whose ``size * gain`` overflows fp32, and that sets ``status[0]``. Nothing is clipped where the sum of squares is
below 2^-100 or overflows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import trits
from .philox import uniform
from .rows import (
    Row,
    blocks,
    ceil_div,
    decode,
    encode,
    flag,
    lane_sum,
    pad4,
    root,
    take,
)

TINY = 2.0**-100


def section(numel: int, block: int) -> int:
    """Bytes of a row."""
    return 4 * ceil_div(numel, block) + pad4(trits.packed_bytes(numel))


def ternary_encode(
    x: Tensor, add: Tensor | None, wire: Tensor, table: Tensor, status: Tensor, decay: float, add_scale: float,
    gain: Tensor, clip: float, block: int, step: int, rank: int,
) -> None:  # fmt: skip
    """``wire <- (sizes, digits)`` of ``y = decay*x + add_scale*add``, ``x <- y - value``; ``clip`` 0: none."""

    def encoded(y: Tensor, row: Row, r: int) -> tuple[Tensor, ...]:
        noise = uniform(row.key, row.offset, row.numel, step, rank, y.device)
        size = sizes(y, clip, block)
        small, good = size < TINY, torch.isfinite(size * gain[r])
        flag(status, 0, ~good & ~small)
        size = torch.where(good & ~small, size, 0.0)
        q = quantise(blocks(y, block), size, blocks(noise, block)).view(-1)[: row.numel]
        sent = size * gain[r]
        return _values(q, sent, block), sent, trits.pack((q + 1).to(torch.uint8))

    encode(
        "ternary_encode", x, add, wire, table, status, decay, add_scale, lambda row: section(row.numel, block), encoded
    )


def sizes(y: Tensor, clip: float, block: int) -> Tensor:
    """max|y| of each block, or ``clip`` root mean squares where that is less."""
    padded = blocks(y, block)
    size = padded.abs().amax(1)
    if not clip:
        return size
    total = lane_sum(padded * padded)
    count = torch.full_like(total, block)
    count[-1] = y.numel() - (len(total) - 1) * block
    limit = torch.full_like(total, clip) * root(total / count)
    return torch.where((total >= TINY) & (limit < size), limit, size)


def quantise(y: Tensor, size: Tensor, noise: Tensor) -> Tensor:
    """int32 q in -1..1 with E q = y/size, for ``[blocks, block]`` numbers and a size per block; 0 where that is 0."""
    inverse = torch.ones_like(size) / size
    q = torch.floor(y * torch.where(size > 0, inverse, 0.0)[:, None] + noise)
    return q.clamp(-1, 1).to(torch.int32)


def _values(q: Tensor, sent: Tensor, block: int) -> Tensor:
    return q.to(torch.float32) * sent.repeat_interleave(block)[: q.numel()]


def ternary_decode(
    wires: Tensor, table: Tensor, skip: Tensor, out: Tensor, scale: float, accumulate: bool, block: int,
) -> None:  # fmt: skip
    """``out (+)= scale * sum of (digit - 1) * size``."""

    def values(message: Tensor, row: Row) -> Tensor:
        count = ceil_div(row.numel, block)
        sent = take(message, row.wire, count, torch.float32)
        raw = take(message, row.wire + 4 * count, trits.packed_bytes(row.numel), torch.uint8)
        return _values(trits.unpack(raw, row.numel).to(torch.int32) - 1, sent, block)

    decode("ternary_decode", wires, table, skip, out, scale, accumulate, lambda row: section(row.numel, block), values)
