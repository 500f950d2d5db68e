"""Natural dithering: random rounding to levels that halve, under a norm per block (Horvath et al. 2019,
arXiv:1905.10988, section 3).

    N = max|y|  or  sqrt(sum y^2)           per block
    levels 0 and N * 2^(i - s), i = 1..s = 2^(bits - 1) - 1
    p = 2^(s-1) |y|/N,  z = max(p + 1, 2 p)            (the lowest level has p = 1)
    i = (bits(z) - bits(1) + 128 u + 64) >> 23        u: the element's 16-bit dither
    value = +-2^(i - s) * step, step = N * gain, or 0 for i = 0;  x <- y - value

z is linear in |y| between any two levels, zero included, and there its bits, read as an integer, are linear in z; so
the sum carries into the exponent with the right probability.

Section: one fp32 step per block, then the codes +-i + s of ``bits`` bits, padded to 4 bytes: ``bits + 32/block`` bits
per element. A block whose norm is below 2^-100 sends zeros and stays in x; so does one whose norm or step overflows
fp32, and that sets ``status[0]``.
Difference from the paper: blocks instead of whole vectors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .bits import pack, packed_bytes, unpack
from .philox import dither
from .qsgd import TINY, section
from .rows import (
    Row,
    blocks,
    ceil_div,
    decode,
    encode,
    flag,
    lane_sum,
    root,
    take,
)

ONE = 0x3F800000


def natural_dither_encode(
    x: Tensor, add: Tensor | None, wire: Tensor, table: Tensor, status: Tensor, decay: float, add_scale: float,
    gain: Tensor, bits: int, norm2: bool, block: int, step: int, rank: int,
) -> None:  # fmt: skip
    """``wire <- (steps, codes)`` of ``y = decay*x + add_scale*add``, ``x <- y - value``."""
    levels = 2 ** (bits - 1) - 1

    def encoded(y: Tensor, row: Row, r: int) -> tuple[Tensor, ...]:
        noise = dither(row.key, row.offset, row.numel, step, rank, y.device).to(torch.int32) * 128 + 64
        steps, q = _quantise(blocks(y, block), gain[r], levels, norm2, status, blocks(noise, block))
        value = _values(q, steps[:, None], levels).view(-1)[: row.numel]
        codes = (q + levels).to(torch.uint8).view(-1)[: row.numel]
        return value, steps, pack(codes, bits)

    encode(
        "natural_dither_encode", x, add, wire, table, status, decay, add_scale,
        lambda row: section(row.numel, bits, block), encoded,
    )  # fmt: skip


def _quantise(
    y: Tensor, gain: Tensor, levels: int, norm2: bool, status: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Steps ``[blocks]`` and signed indices ``[blocks, block]``."""
    norm = root(lane_sum(y * y)) if norm2 else y.abs().amax(1)
    steps = norm * gain
    small, good = norm < TINY, torch.isfinite(norm) & torch.isfinite(steps)
    flag(status, 0, ~good & ~small)
    used = good & ~small
    inverse = torch.where(used, torch.ones_like(norm) / norm, 0.0)
    p = (y * inverse[:, None]).abs() * 2.0 ** (levels - 1)
    z = torch.maximum(p + 1.0, p + p).view(torch.int32)
    index = ((z - ONE + noise) >> 23).clamp_max(levels)
    return torch.where(used, steps, 0.0), torch.where(y.view(torch.int32) < 0, -index, index)


def _values(q: Tensor, steps: Tensor, levels: int) -> Tensor:
    size = (q.abs() + (127 - levels) << 23).view(torch.float32) * steps
    return torch.where(q == 0, 0.0, torch.where(q < 0, -size, size))


def natural_dither_decode(
    wires: Tensor, table: Tensor, skip: Tensor, out: Tensor, scale: float, accumulate: bool, bits: int, block: int,
) -> None:  # fmt: skip
    """``out (+)= scale * sum of +-2^(i - s) * step``."""
    levels = 2 ** (bits - 1) - 1

    def values(message: Tensor, row: Row) -> Tensor:
        count = ceil_div(row.numel, block)
        steps = take(message, row.wire, count, torch.float32)
        raw = take(message, row.wire + 4 * count, packed_bytes(row.numel, bits), torch.uint8)
        q = unpack(raw, bits, row.numel).to(torch.int32) - levels
        return _values(q, steps.repeat_interleave(block)[: row.numel], levels)

    decode(
        "natural_dither_decode", wires, table, skip, out, scale, accumulate,
        lambda row: section(row.numel, bits, block), values,
    )  # fmt: skip
