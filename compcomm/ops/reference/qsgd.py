"""QSGD: uniform levels times one step per block (Alistarh, Grubic, Li, Tomioka, Vojnovic 2017, arXiv:1610.02132, 3.1).

    N = max|y|  or  sqrt(sum y^2)           per block
    step = N / levels * gain
    q = rint(y * levels/N)  or  floor(y * levels/N + U)    clamped to -levels..levels
    value = q * step,  x <- y - value

Section: one fp32 step per block, then all codes ``q + levels`` of ``bits`` bits, padded to 4 bytes: ``bits + 32/block``
bits per element. ``gain`` (one per row) shrinks or grows what is sent without touching the codes.
Differences from the paper: the max norm and rounding to nearest are offered too, blocks instead of whole vectors, and
plain fixed-width codes instead of Elias codes. A block whose norm is below 2^-100 sends zeros and stays in x; so does
one whose norm or largest value overflows fp32, and that sets ``status[0]``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .bits import pack, packed_bytes, unpack
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


def section(numel: int, bits: int, block: int) -> int:
    """Bytes of a row."""
    return 4 * ceil_div(numel, block) + pad4(packed_bytes(numel, bits))


def qsgd_encode(
    x: Tensor, add: Tensor | None, wire: Tensor, table: Tensor, status: Tensor, decay: float, add_scale: float,
    gain: Tensor, bits: int, levels: int, norm2: bool, stochastic: bool, block: int, step: int, rank: int,
) -> None:  # fmt: skip
    """``wire <- (steps, codes)`` of ``y = decay*x + add_scale*add``, ``x <- y - value``."""

    def encoded(y: Tensor, row: Row, r: int) -> tuple[Tensor, ...]:
        noise = uniform(row.key, row.offset, row.numel, step, rank, y.device) if stochastic else None
        steps, q = quantise(y, gain[r], levels, norm2, block, status, noise)
        value = (q.to(torch.float32) * steps[:, None]).view(-1)[: row.numel]
        codes = (q + levels).to(torch.uint8).view(-1)[: row.numel]
        return value, steps, pack(codes, bits)

    encode(
        "qsgd_encode", x, add, wire, table, status, decay, add_scale,
        lambda row: section(row.numel, bits, block), encoded,
    )  # fmt: skip


def quantise(
    y: Tensor, gain: Tensor, levels: int, norm2: bool, block: int, status: Tensor, noise: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Steps ``[blocks]`` and signed codes ``[blocks, block]``."""
    y = blocks(y, block)
    norm = root(lane_sum(y * y)) if norm2 else y.abs().amax(1)
    top = torch.full_like(norm, levels)  # a tensor: dividing by a Python number may become a product on some devices
    inverse, steps = top / norm, norm / top * gain
    small, good = norm < TINY, torch.isfinite(norm) & torch.isfinite(top * steps)
    flag(status, 0, ~good & ~small)
    used = good & ~small
    steps = torch.where(used, steps, 0.0)
    t = y * inverse[:, None]
    q = torch.round(t) if noise is None else torch.floor(t + blocks(noise, block))
    q = torch.where(used[:, None], q, 0.0).clamp(-levels, levels)
    return steps, q.to(torch.int32)  # integers: a negative zero must not reach the product


def qsgd_decode(
    wires: Tensor, table: Tensor, skip: Tensor, out: Tensor, scale: float, accumulate: bool,
    bits: int, levels: int, block: int,
) -> None:  # fmt: skip
    """``out (+)= scale * sum of (code - levels) * step``."""

    def values(message: Tensor, row: Row) -> Tensor:
        count = ceil_div(row.numel, block)
        steps = take(message, row.wire, count, torch.float32)
        raw = take(message, row.wire + 4 * count, packed_bytes(row.numel, bits), torch.uint8)
        q = unpack(raw, bits, row.numel).to(torch.int32) - levels
        return q.to(torch.float32) * steps.repeat_interleave(block)[: row.numel]

    decode(
        "qsgd_decode", wires, table, skip, out, scale, accumulate, lambda row: section(row.numel, bits, block), values
    )
