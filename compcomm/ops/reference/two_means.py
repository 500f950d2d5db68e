"""Two means: one bit per element and the mean of each part (1-bit SGD; Seide, Fu, Droppo, Li, Yu 2014).

    r0 = (sum of y < 0) / n0,   r1 = (sum of y >= 0) / n1        0 where a part is empty
    value = r0 where y < 0, else r1;   x <- y - value

Section: r0 and r1 (fp32) of each block, then the bits (1: negative), padded to 4 bytes: ``1 + 64/block`` bits per
element. Each sum is taken by the fixed tree over the whole block, the elements of the other part counting as zero.
A sum that overflows fp32: the block is sent as zero, which sets ``status[0]``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .bits import pack, packed_bytes, unpack
from .rows import (
    Row,
    blocks,
    ceil_div,
    decode,
    encode,
    flag,
    lane_sum,
    pad4,
    take,
)


def section(numel: int, block: int) -> int:
    """Bytes of a row."""
    return 8 * ceil_div(numel, block) + pad4(packed_bytes(numel, 1))


def two_means_encode(
    x: Tensor, add: Tensor | None, wire: Tensor, table: Tensor, status: Tensor, decay: float, add_scale: float,
    block: int,
) -> None:  # fmt: skip
    """``wire <- (r0 and r1, bits)`` of ``y = decay*x + add_scale*add``, ``x <- y - value``."""

    def encoded(y: Tensor, row: Row, r: int) -> tuple[Tensor, ...]:
        negative = y < 0
        padded, below = blocks(y, block), blocks(negative, block)
        sums = torch.stack((lane_sum(torch.where(below, padded, 0.0)), lane_sum(torch.where(below, 0.0, padded))), 1)
        count = below.sum(1)
        counts = torch.stack((count, torch.full_like(count, block) - count), 1)
        counts[-1, 1] -= padded.numel() - row.numel
        good = torch.isfinite(sums).all(1)
        flag(status, 0, ~good)
        means = torch.where(good[:, None] & (counts > 0), sums / counts.to(torch.float32), 0.0)
        return _values(negative, means, block), means, pack(negative.to(torch.uint8), 1)

    encode(
        "two_means_encode", x, add, wire, table, status, decay, add_scale,
        lambda row: section(row.numel, block), encoded,
    )  # fmt: skip


def _values(negative: Tensor, means: Tensor, block: int) -> Tensor:
    below, above = means.repeat_interleave(block, 0)[: negative.numel()].unbind(1)
    return torch.where(negative, below, above)


def two_means_decode(
    wires: Tensor, table: Tensor, skip: Tensor, out: Tensor, scale: float, accumulate: bool, block: int,
) -> None:  # fmt: skip
    """``out (+)= scale * sum of the means that the bits choose``."""

    def values(message: Tensor, row: Row) -> Tensor:
        count = ceil_div(row.numel, block)
        means = take(message, row.wire, 2 * count, torch.float32).view(count, 2)
        raw = take(message, row.wire + 8 * count, packed_bytes(row.numel, 1), torch.uint8)
        return _values(unpack(raw, 1, row.numel) != 0, means, block)

    decode(
        "two_means_decode", wires, table, skip, out, scale, accumulate, lambda row: section(row.numel, block), values
    )
