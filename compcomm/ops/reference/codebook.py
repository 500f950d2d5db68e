"""Codebooks: the nearest of 2^bits symmetric levels of y/sigma, times one scale per block.

    sigma = sqrt(sum y^2 / n),  t = y/sigma,  c = the level nearest to t        per block of n elements
    S = <c, y> / |c|^2   (mse: the projection on c)   or   |y|^2 / <c, y>   (dot: then <y, S c> = |y|^2)
    value = S c,  x <- y - value

``levels`` holds the positive half of the codebook, ascending; boundaries are midpoints, and a tie goes to the smaller
level; zero of either sign is positive. Code: the rank among all 2^bits levels, ascending (so the first bit is 1 for
positive). ``part``/65536 is the fraction of elements that take ``bits + 1`` bits (``levels`` then holds the half
codebooks of both widths, the narrow one first): a window of h = round(n part/65536) positions, cyclic in the block,
that starts at element (w n) >> 32, w the first word of Philox(counter=(block's number in the parameter, step, 0, 5),
key). No rank is in it: all ranks have one window, the decoder draws it too, and every element is in it with the same
probability h/n. With ``bits = 0`` the elements outside are not sent, and h is at least one.

Section: one fp32 S per block; ``bits`` bits per element: the code, or in the window its leading bits; then for each
block ceil(h/8) bytes with the last bit of the codes in the window, in the window's order; padded to 4 bytes.

A block whose sum of squares is below 2^-80 or beyond fp32 is first multiplied by the power of two that brings its
largest element to 1..2 (2..4 at the end of the range), and S divided by it. If the largest element is below 2^-100,
S = 0 and the block stays in x whole; so does one where S times the largest level overflows, and that sets
``status[0]``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .bits import pack, packed_bytes, unpack
from .philox import philox
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

SMALL, TINY = 2.0**-80, 2.0**-100
STREAM = 5


def window_length(n: int, bits: int, part: int) -> int:
    """Elements of a block of n that take one bit more."""
    return max((n * part + 32768) >> 16, int(bits == 0)) if part else 0


def section(numel: int, bits: int, part: int, block: int) -> int:
    """Bytes of a row."""
    whole, rest = divmod(numel, block)
    extra = whole * packed_bytes(window_length(block, bits, part), 1)
    extra += packed_bytes(window_length(rest, bits, part), 1) if rest else 0
    return 4 * ceil_div(numel, block) + pad4(packed_bytes(numel, bits) + extra)


class _Book(NamedTuple):
    half: Tensor
    bounds: Tensor

    def nearest(self, size: Tensor) -> Tensor:
        """How many boundaries lie below."""
        return torch.bucketize(size, self.bounds)

    def code(self, index: Tensor, negative: Tensor) -> Tensor:
        """Rank among all levels."""
        m = len(self.half)
        return torch.where(negative, m - 1 - index, m + index)

    def level(self, code: Tensor) -> Tensor:
        """The level of that rank."""
        return torch.cat((-self.half.flip(0), self.half))[code]


def _books(levels: Tensor, bits: int, device: torch.device) -> tuple[_Book, _Book]:
    """The codebooks of ``bits`` and ``bits + 1`` bits (either may be empty)."""
    levels = levels.to(device)
    cut = 1 << bits >> 1
    return tuple(_Book(h, (h[1:] + h[:-1]) * 0.5) for h in (levels[:cut], levels[cut:]))  # type: ignore[return-value]


def _windows(row: Row, bits: int, part: int, block: int, step: int, device: torch.device) -> list[Tensor]:
    """The windows' elements in order, ``[blocks, h]``: of the full blocks, and of the last short one."""
    whole, rest = divmod(row.numel, block)
    found: list[Tensor] = []
    for first, count, n in ((0, whole, block), (whole, 1, rest)):
        if part and count and n:
            number = torch.arange(first, first + count, dtype=torch.int64, device=device)
            drawn = philox((row.offset + number * block) // block, step, 0, STREAM, row.key)[0]
            start, order = drawn * n >> 32, torch.arange(window_length(n, bits, part), dtype=torch.int64, device=device)
            found.append((start[:, None] + order) % n + number[:, None] * block)
    return found


def _inside(windows: list[Tensor], numel: int, device: torch.device) -> Tensor:
    mask = torch.zeros(numel, dtype=torch.bool, device=device)
    for elements in windows:
        mask[elements.view(-1)] = True
    return mask


def codebook_encode(
    x: Tensor, add: Tensor | None, wire: Tensor, table: Tensor, status: Tensor, decay: float, add_scale: float,
    levels: Tensor, bits: int, part: int, dot: bool, block: int, step: int,
) -> None:  # fmt: skip
    """``wire <- (scales, codes)`` of ``y = decay*x + add_scale*add``, ``x <- y - value``."""
    low, high = _books(levels, bits, x.device)
    top = levels[-1].item()

    def encoded(y: Tensor, row: Row, r: int) -> tuple[Tensor, ...]:
        windows = _windows(row, bits, part, block, step, y.device)
        inside, negative = _inside(windows, row.numel, y.device), y < 0
        scaled, power, squares, inverse = _normal(y, block)
        size = (scaled * inverse[:, None]).abs().view(-1)[: row.numel]
        code = low.code(low.nearest(size), negative) if bits else torch.zeros_like(negative, dtype=torch.int64)
        level = low.level(code) if bits else torch.zeros_like(y)
        if part:
            fine = high.code(high.nearest(size), negative)
            level = torch.where(inside, high.level(fine), level)
            code = torch.where(inside, fine >> 1, code)
            last = [(fine & 1)[elements] for elements in windows]
        else:
            last = []
        c = blocks(level, block)
        product, norm = lane_sum(c.abs() * scaled.abs()), lane_sum(c * c)
        scale = torch.where(product > 0, squares / product, 0.0) if dot else product / norm
        scale = torch.where(inverse > 0, scale / power, 0.0)
        good = torch.isfinite(scale * top)
        flag(status, 0, ~good)
        scale = torch.where(good, scale, 0.0)
        streams = [pack(F.pad(b, (0, -b.shape[1] % 8)).to(torch.uint8).view(-1), 1) for b in last]
        return (
            level * scale.repeat_interleave(block)[: row.numel],
            scale,
            *([pack(code.to(torch.uint8), bits)] if bits else []),
            *streams,
        )

    encode(
        "codebook_encode", x, add, wire, table, status, decay, add_scale,
        lambda row: section(row.numel, bits, part, block), encoded,
    )  # fmt: skip


def _normal(y: Tensor, block: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y times a power of two ``[blocks, block]``, the power, the sum of its squares, and 1/sigma of it (0: nothing is
    sent)."""
    padded = blocks(y, block)
    squares = lane_sum(padded * padded)
    largest = padded.abs().amax(1)
    usual = (squares >= SMALL) & torch.isfinite(squares)
    exponent = 254 - (largest.view(torch.int32) >> 23)
    power = torch.where(usual, 1.0, (exponent.clamp(1, 253) << 23).view(torch.float32))
    scaled = padded * power[:, None]
    squares = lane_sum(scaled * scaled)
    elements = torch.full_like(squares, block)
    elements[-1] = y.numel() - (len(squares) - 1) * block
    inverse = 1.0 / root(squares / elements)
    return scaled, power, squares, torch.where(usual | (largest >= TINY), inverse, 0.0)


def codebook_decode(
    wires: Tensor, table: Tensor, skip: Tensor, out: Tensor, scale: float, accumulate: bool,
    levels: Tensor, bits: int, part: int, block: int, step: int,
) -> None:  # fmt: skip
    """``out (+)= scale * sum of S c``."""
    low, high = _books(levels, bits, out.device)

    def values(message: Tensor, row: Row) -> Tensor:
        count = ceil_div(row.numel, block)
        scales = take(message, row.wire, count, torch.float32)
        at, nbytes = row.wire + 4 * count, packed_bytes(row.numel, bits)
        code = torch.zeros(row.numel, dtype=torch.int64, device=message.device)
        level = torch.zeros(row.numel, dtype=torch.float32, device=message.device)
        if bits:
            code = unpack(take(message, at, nbytes, torch.uint8), bits, row.numel).to(torch.int64)
            level = low.level(code)
        at += nbytes
        for elements in _windows(row, bits, part, block, step, message.device):
            nbytes = packed_bytes(elements.shape[1], 1)
            raw = take(message, at, len(elements) * nbytes, torch.uint8)
            last = unpack(raw, 1, 8 * raw.numel()).view(len(elements), -1)[:, : elements.shape[1]]
            level[elements] = high.level(2 * code[elements] + last)
            at += len(elements) * nbytes
        size = scales.repeat_interleave(block)[: row.numel]
        return torch.where(level == 0, 0.0, level * size)  # what is not sent is 0, whatever scale a peer made up

    decode(
        "codebook_decode", wires, table, skip, out, scale, accumulate,
        lambda row: section(row.numel, bits, part, block), values,
    )  # fmt: skip
