"""MinMax: equal levels from a block's least element to its greatest (the quantiser of CGX, Markov et al. 2022).

    low, high = min y, max y                        per block, over the elements really in it
    unit = (high - low) / top,   top = 2**bits - 1
    level = rint(t)  or  floor(t + clamp(U, eps, 1 - eps)),   t = (y - low) * top/(high - low),   at most top
    value = low + unit * level, and exactly high for level top;   x <- y - value

Section: low and high (fp32) of each block, then all levels of ``bits`` bits, padded to 4 bytes: ``bits + 64/block``
bits per element. The wire has high instead of unit, so that both extremes are exact and coding what was decoded changes
nothing. ``gain`` (one per row) multiplies low and high on the wire, and so every value.

``eps = 2^-23 max|y|/unit + 2^-21 top`` (at most 1/2) is the rounding error of ``t``, in levels: what is as near as
that to a level is taken for it. For 16-bit dithers that matters from 5 bits on, or where all elements are nearly equal.
A range below 2^-100 is sent as ``low``; one that overflows fp32 as zero, and that sets ``status[0]``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .bits import pack, packed_bytes, unpack
from .philox import uniform
from .rows import (
    Row,
    ceil_div,
    decode,
    encode,
    flag,
    pad4,
    take,
)

TINY = 2.0**-100


def section(numel: int, bits: int, block: int) -> int:
    """Bytes of a row."""
    return 8 * ceil_div(numel, block) + pad4(packed_bytes(numel, bits))


def minmax_encode(
    x: Tensor, add: Tensor | None, wire: Tensor, table: Tensor, status: Tensor, decay: float, add_scale: float,
    gain: Tensor, bits: int, stochastic: bool, block: int, step: int, rank: int,
) -> None:  # fmt: skip
    """``wire <- (low and high, levels)`` of ``y = decay*x + add_scale*add``, ``x <- y - value``."""

    def encoded(y: Tensor, row: Row, r: int) -> tuple[Tensor, ...]:
        noise = uniform(row.key, row.offset, row.numel, step, rank, y.device) if stochastic else None
        ends, levels = _quantise(y, gain[r], 2**bits - 1, block, status, noise)
        levels = levels.view(-1)[: row.numel]
        return _values(ends, levels, 2**bits - 1, block), ends, pack(levels.to(torch.uint8), bits)

    encode(
        "minmax_encode", x, add, wire, table, status, decay, add_scale,
        lambda row: section(row.numel, bits, block), encoded,
    )  # fmt: skip


def _repeated(y: Tensor, block: int) -> Tensor:
    """The row as ``[blocks, block]``, its last element repeated: that changes no minimum and no maximum."""
    missing = -y.numel() % block
    return torch.cat((y, y[-1:].expand(missing))).view(-1, block)


def _quantise(
    y: Tensor, gain: Tensor, top: int, block: int, status: Tensor, noise: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What is sent of the ends ``[blocks, 2]``, and the levels ``[blocks, block]``."""
    y = _repeated(y, block)
    low, high = y.amin(1) + 0.0, y.amax(1) + 0.0  # adding zero makes -0 positive
    extent = high - low
    ends = torch.stack((low, high), 1) * gain
    good = torch.isfinite(extent) & torch.isfinite(ends[:, 1] - ends[:, 0])
    flag(status, 0, ~good)
    live = good & (extent >= TINY)
    ends[:, 1] = torch.where(live, ends[:, 1], ends[:, 0])
    ends = torch.where(good[:, None], ends, 0.0)

    tops = torch.full_like(extent, top)  # a tensor: dividing by a Python number may become a product on some devices
    inverse = tops / extent
    short = extent * inverse < tops  # the greatest element must reach the top level whatever the dither
    inverse = torch.where(short, (inverse.view(torch.int32) + 1).view(torch.float32), inverse)
    t = (y - low[:, None]) * inverse[:, None]
    if noise is None:
        level = torch.round(t)
    else:
        eps = torch.maximum(-low, high) * inverse * 2.0**-23 + top * 2.0**-21
        eps = torch.where(live, eps, 0.0).clamp(max=0.5)[:, None]
        level = torch.floor(t + torch.minimum(torch.maximum(_repeated(noise, block), eps), 1.0 - eps))
    return ends, torch.where(live[:, None], level, 0.0).clamp(0, top).to(torch.int32)


def _values(ends: Tensor, levels: Tensor, top: int, block: int) -> Tensor:
    low, high = ends[:, 0], ends[:, 1]
    unit = (high - low) / torch.full_like(high, top)
    low, high, unit = (part.repeat_interleave(block)[: levels.numel()] for part in (low, high, unit))
    return torch.where(levels == top, high, low + levels.to(torch.float32) * unit)


def minmax_decode(
    wires: Tensor, table: Tensor, skip: Tensor, out: Tensor, scale: float, accumulate: bool, bits: int, block: int,
) -> None:  # fmt: skip
    """``out (+)= scale * sum of (low + level * unit)``."""

    def values(message: Tensor, row: Row) -> Tensor:
        count = ceil_div(row.numel, block)
        ends = take(message, row.wire, 2 * count, torch.float32).view(count, 2)
        raw = take(message, row.wire + 8 * count, packed_bytes(row.numel, bits), torch.uint8)
        return _values(ends, unpack(raw, bits, row.numel), 2**bits - 1, block)

    decode(
        "minmax_decode", wires, table, skip, out, scale, accumulate, lambda row: section(row.numel, bits, block), values
    )
