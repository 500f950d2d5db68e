"""The randomised Hadamard transform R = (1/sqrt n) H diag(signs), in blocks: orthogonal, so R^T R = 1.

A row is cut into blocks of ``block`` elements (a power of two), and what remains at its end into descending powers of
two: a tail of 2049 is a block of 2048 and one of 1. So R maps d numbers to d numbers, and there is no padding. On each
block of n elements, in this order on every backend (so all agree to the bit):

    forward   t = y * (+- fl(n^-1/2));   then t[i], t[i + h] <- t[i] + t[i + h], t[i] - t[i + h]  for h = 1, 2, 4 .. n/2
    inverse   t = z * fl(n^-1/2);        the same butterflies in the same order;                  then the signs

Signs: element ``j`` of a parameter (the row's offset plus its place in the row) takes bit ``j % 32`` of word
``j % 128 // 32`` of ``Philox(counter=(j // 128, step, 0, 2), key)``; 1 is minus. No rank is in it: all ranks rotate
alike, and anew at every step. A block with a number of 2^64 or more, whose transform or square may overflow, gives
zeros and sets ``status[0]``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .philox import SUPERBLOCK, philox
from .rows import Row, check_encode_rows, decode, flag, load, put, rows, take

LIMIT = 2.0**64
_STREAM = 2  # Philox counters: 0 are dithers, 1 the indices of rand-k


def section(row: Row) -> int:
    """Bytes of a row."""
    return 4 * row.numel


def signs(key: int, offset: int, numel: int, step: int, device: torch.device | None = None) -> Tensor:
    """+1 or -1 for the elements ``offset .. offset + numel - 1`` of a parameter, fp32."""
    first, last = offset // SUPERBLOCK, -(-(offset + numel) // SUPERBLOCK)
    counters = torch.arange(first, last, dtype=torch.int64, device=device)
    words = torch.stack(philox(counters, step, 0, _STREAM, key), dim=1)
    bits = words[:, :, None] >> torch.arange(32, dtype=torch.int64, device=device) & 1
    return 1.0 - 2.0 * bits.view(-1)[offset - first * SUPERBLOCK :][:numel].to(torch.float32)


def cut(numel: int, block: int) -> Iterator[tuple[int, int, int]]:
    """(first element, blocks, their size): all whole blocks, then one block for every one bit of what remains.

    >>> list(cut(2 * 4096 + 2049, 4096))
    [(0, 2, 4096), (8192, 1, 2048), (10240, 1, 1)]
    """
    whole = numel // block
    if whole:
        yield 0, whole, block
    at = whole * block
    size = block >> 1
    while at < numel:
        if size <= numel - at:
            yield at, 1, size
            at += size
        size >>= 1


def root(size: int) -> float:
    """size^-1/2, to be rounded to fp32 once more: root and quotient are exact to the bit in fp64 everywhere."""
    return 1.0 / math.sqrt(size)


def butterflies(t: Tensor) -> Tensor:
    """H times each row of ``[blocks, size]``."""
    blocks, size = t.shape
    h = 1
    while h < size:
        pairs = t.view(blocks, -1, 2, h)
        a, b = pairs[:, :, 0], pairs[:, :, 1]
        t = torch.stack((a + b, a - b), dim=2).view(blocks, size)
        h *= 2
    return t


def hadamard_forward(
    x: Tensor,
    add: Tensor | None,
    z: Tensor,
    table: Tensor,
    status: Tensor,
    decay: float,
    add_scale: float,
    block: int,
    step: int,
) -> None:
    """``x <- y = decay*x + add_scale*add``, ``z <- R y``: fp32 numbers from byte ``wire`` of each row on."""
    check_encode_rows("hadamard_forward", x, add, z, table, status, section)
    for row in rows(table):
        if row.numel == 0:
            continue
        y = load(x, add, row, status, decay, add_scale)
        x[row.x : row.x + row.numel] = y
        sign = signs(row.key, row.offset, row.numel, step, y.device)
        parts: list[Tensor] = []
        for at, count, size in cut(row.numel, block):
            part = slice(at, at + count * size)
            own = y[part].view(count, size)
            good = own.abs().amax(1) < LIMIT
            flag(status, 0, ~good)
            t = butterflies(own * (sign[part].view(count, size) * root(size)))
            parts.append(torch.where(good[:, None], t, 0.0).view(-1))
        put(z, row.wire, *parts)


def hadamard_inverse(
    z: Tensor,
    table: Tensor,
    skip: Tensor,
    out: Tensor,
    scale: float,
    accumulate: bool,
    block: int,
    step: int,
) -> None:
    """``out = scale * R^T z``, or ``out + scale * R^T z``; ``z``: the bytes of one vector, ``[1, bytes]``."""

    def values(message: Tensor, row: Row) -> Tensor:
        numbers = take(message, row.wire, row.numel, torch.float32)
        parts: list[Tensor] = []
        for at, count, size in cut(row.numel, block):
            own = numbers[at : at + count * size].view(count, size)
            parts.append(butterflies(own * root(size)).view(-1))
        return torch.cat(parts) * signs(row.key, row.offset, row.numel, step, z.device)

    decode("hadamard_inverse", z, table, skip, out, scale, accumulate, section, values)
