"""Shared scale: levels under the largest norm of any rank, as integers that an all-reduce may sum.

    N_r = max|y| or sqrt(sum y^2)  per block and rank;  N = max over the ranks;  step = N/s
    q = rint(y * s/N)  or  floor(y * s/N + U),  clamped to -s..s;  x <- y - q*step
    mean = (sum over the ranks of q) * step / W

Codes q + s take ``width`` bits, enough for the sum of W of them (2 s W < 2^width); L = 32 // width share a word.
A row is cut into groups of 16 L elements: lane k (bits [k width, (k+1) width)) of word l of a group is the code of
element 16 k + l, so words are summed without a carry from lane to lane. Absent elements count as zero: code s.
``32 / L`` bits per element, and ``32 / block`` for the norms. A block whose N is below 2^-100 or cannot be scaled sends
zeros. The tables of ``encode`` and ``decode`` hold in column 1 the byte at which the row's norms begin.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .philox import uniform
from .qsgd import TINY
from .rows import Row, blocks, ceil_div, check_encode_rows, flag, lane_sum, load, put, root, rows, take


def lanes(width: int) -> int:
    """Codes per 32-bit word."""
    return 32 // width


def section(numel: int, width: int) -> int:
    """Bytes of a row's words."""
    return 64 * ceil_div(numel, 16 * lanes(width))


def shared_norms(
    x: Tensor,
    add: Tensor | None,
    wire: Tensor,
    table: Tensor,
    status: Tensor,
    decay: float,
    add_scale: float,
    levels: int,
    norm2: bool,
    block: int,
) -> None:
    """``x <- y = decay*x + add_scale*add``; ``wire <-`` the norm of each block, fp32."""
    check_encode_rows("shared_norms", x, add, wire, table, status, lambda row: 4 * ceil_div(row.numel, block))
    for row in rows(table):
        if row.numel == 0:
            continue
        y = load(x, add, row, status, decay, add_scale)
        x[row.x : row.x + row.numel] = y
        y = blocks(y, block)
        size = root(lane_sum(y * y)) if norm2 else y.abs().amax(1)
        good = _scalable(size, levels)
        flag(status, 0, ~good)
        put(wire, row.wire, torch.where(good, size, 0.0))


def _scalable(size: Tensor, levels: int) -> Tensor:
    top = torch.full_like(size, levels)
    return torch.isfinite(size) & torch.isfinite(top * (size / top))


def _scales(norms: Tensor, row: Row, levels: int, block: int) -> tuple[Tensor, Tensor]:
    """Step and inverse step of each block."""
    size = take(norms, row.add, ceil_div(row.numel, block), torch.float32)
    top = torch.full_like(size, levels)
    used = (size >= TINY) & _scalable(size, levels)
    return torch.where(used, size / top, 0.0), torch.where(used, top / size, 0.0)


def _check(op: str, table: Tensor, tensor: Tensor, words: Tensor, norms: Tensor, width: int, block: int) -> None:
    for r, row in enumerate(rows(table)):
        if row.x == -1 and op == "shared_decode":
            continue
        fits = (
            0 <= row.numel <= 1 << 40
            and 0 <= row.x <= tensor.numel() - row.numel
            and 0 <= row.wire <= words.numel() - section(row.numel, width)
            and 0 <= row.add <= norms.numel() - 4 * ceil_div(row.numel, block)
        )
        if not fits:
            raise ValueError(
                f"compcomm.{op}: table row {r} {tuple(row)} lies outside {tensor.numel()} elements, {words.numel()} "
                f"bytes of words or {norms.numel()} bytes of norms"
            )


def shared_encode(
    x: Tensor,
    norms: Tensor,
    words: Tensor,
    table: Tensor,
    width: int,
    levels: int,
    stochastic: bool,
    block: int,
    step: int,
    rank: int,
) -> None:
    """``words <-`` the codes of ``x`` under the norms given, ``x <- x - q*step``."""
    _check("shared_encode", table, x, words, norms, width, block)
    for row in rows(table):
        if row.numel == 0:
            continue
        y = x[row.x : row.x + row.numel]
        steps, inverse = (s.repeat_interleave(block)[: row.numel] for s in _scales(norms, row, levels, block))
        t = y * inverse
        q = torch.floor(t + uniform(row.key, row.offset, row.numel, step, rank, y.device)) if stochastic else t.round()
        q = q.clamp(-levels, levels).to(torch.int32)
        group = 16 * lanes(width)
        codes = torch.nn.functional.pad(q.long() + levels, (0, -row.numel % group), value=levels).view(
            -1, lanes(width), 16
        )
        shifts = torch.arange(lanes(width), dtype=torch.int64, device=y.device) * width
        total = (codes << shifts[:, None]).sum(1)
        put(words, row.wire, torch.where(total >= 1 << 31, total - (1 << 32), total).to(torch.int32))
        y.sub_(q.to(torch.float32) * steps)


def shared_decode(
    words: Tensor,
    norms: Tensor,
    table: Tensor,
    skip: Tensor,
    out: Tensor,
    scale: float,
    accumulate: bool,
    width: int,
    levels: int,
    block: int,
    world: int,
) -> None:
    """``out (+)= scale * step * (sum of q)`` from the words of ``world`` ranks, summed."""
    _check("shared_decode", table, out, words, norms, width, block)
    for row in rows(table):
        if row.x == -1 or row.numel == 0:
            continue
        target = out[row.x : row.x + row.numel]
        if bool(skip[row.entry]):
            if not accumulate:
                target.zero_()
            continue
        packed = take(words, row.wire, section(row.numel, width) // 4, torch.int32).long().view(-1, 1, 16)
        shifts = torch.arange(lanes(width), dtype=torch.int64, device=out.device) * width
        codes = (packed >> shifts[:, None]) & ((1 << width) - 1)
        q = (codes.reshape(-1)[: row.numel] - levels * world).to(torch.float32)
        steps, _ = _scales(norms, row, levels, block)
        value = q * (steps * scale).repeat_interleave(block)[: row.numel]  # a sum may overflow where the mean does not
        target.copy_(target + value if accumulate else value)
