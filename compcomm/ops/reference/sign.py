"""Sign: one bit per element and one scale per block.

    scale = (sum|y|) / n   (kind 0, Karimireddy et al. 2019, arXiv:1901.09847)   or   sqrt((sum y^2) / n)   (kind 1)
            or   (sum y^2) / (sum|y|)   (kind 2, zero for zeros; Vargaftik et al. 2021, arXiv:2105.08339)
    value = -scale where y < 0, else +scale;   x <- y - value

Section: one fp32 scale per block, then the bits (1: negative), padded to 4 bytes: ``1 + 32/block`` bits per element.
``n`` counts the elements really in the block, so padding never enters a scale. The L1 scale is the best one for the
signs and makes a contraction; the L2 scale keeps the norm, the third one the product <y, value> = |y|^2, and they
promise nothing. A scale that overflows fp32 is sent as
zero and sets ``status[0]``.
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
    root,
    take,
)


def section(numel: int, block: int) -> int:
    """Bytes of a row."""
    return 4 * ceil_div(numel, block) + pad4(packed_bytes(numel, 1))


def sign_encode(
    x: Tensor, add: Tensor | None, wire: Tensor, table: Tensor, status: Tensor, decay: float, add_scale: float,
    kind: int, block: int,
) -> None:  # fmt: skip
    """``wire <- (scales, bits)`` of ``y = decay*x + add_scale*add``, ``x <- y - value``."""

    def encoded(y: Tensor, row: Row, r: int) -> tuple[Tensor, ...]:
        padded = blocks(y, block)
        sizes, squares = lane_sum(padded.abs()), lane_sum(padded * padded)
        elements = torch.full_like(sizes, block)
        elements[-1] = row.numel - (len(sizes) - 1) * block
        dot = torch.where(sizes > 0, squares / sizes, 0.0)
        scale = (sizes / elements, root(squares / elements), dot)[kind]
        flag(status, 0, ~torch.isfinite(scale))
        scale = torch.where(torch.isfinite(scale), scale, 0.0)
        negative = y < 0
        return _values(negative, scale, block), scale, pack(negative.to(torch.uint8), 1)

    encode("sign_encode", x, add, wire, table, status, decay, add_scale, lambda row: section(row.numel, block), encoded)


def _values(negative: Tensor, scale: Tensor, block: int) -> Tensor:
    size = scale.repeat_interleave(block)[: negative.numel()]
    return torch.where(negative, -size, size)


def sign_decode(
    wires: Tensor, table: Tensor, skip: Tensor, out: Tensor, scale: float, accumulate: bool, block: int,
) -> None:  # fmt: skip
    """``out (+)= scale * sum of +-scale_of_block``."""

    def values(message: Tensor, row: Row) -> Tensor:
        count = ceil_div(row.numel, block)
        scales = take(message, row.wire, count, torch.float32)
        raw = take(message, row.wire + 4 * count, packed_bytes(row.numel, 1), torch.uint8)
        return _values(unpack(raw, 1, row.numel) != 0, scales, block)

    decode("sign_decode", wires, table, skip, out, scale, accumulate, lambda row: section(row.numel, block), values)
