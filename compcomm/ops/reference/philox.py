"""Philox4x32-10 in torch, and the dithers of stochastic rounding made from it.

Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. A keyed bijection of 128-bit
counters: ten rounds, each two 32 x 32 -> 64 bit products. There is no state: a draw is a function of (counter, key).

Dithers: element ``j`` of a parameter lies in superblock ``j // 128`` at lane ``l = j % 16`` of vector
``v = j % 128 // 16``; its 16-bit dither is half ``v % 2`` (0: low) of output word ``v // 2`` of
``Philox(counter=(16 * superblock + l, step, rank, 0), key)``. Sixteen SIMD lanes so make eight vectors of dithers
without moving anything between lanes.
"""

from __future__ import annotations

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
SUPERBLOCK = 128


def philox(c0: Tensor, c1: int, c2: int | Tensor, c3: int, key: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four output words (int64 tensors with values in 0..2^32-1) of the counters ``(c0, c1, c2, c3)``.

    ``c0``: int64 tensor; ``c1..c3``: the other words, taken modulo 2^32 (``c2`` may be a tensor of the same shape);
    ``key``: 64 bits, word 0 in the low half.
    """
    k0, k1 = key & _WORD, (key >> 32) & _WORD
    x0 = c0 & _WORD
    x1, x2, x3 = (c & _WORD if isinstance(c, Tensor) else torch.full_like(x0, c & _WORD) for c in (c1, c2, c3))
    for _ in range(10):
        p0, p1 = x0 * _M0, x2 * _M1  # int64 products wrap, but their 64 bits are right
        x0, x1, x2, x3 = ((p1 >> 32) & _WORD) ^ x1 ^ k0, p1 & _WORD, ((p0 >> 32) & _WORD) ^ x3 ^ k1, p0 & _WORD
        k0, k1 = (k0 + _W0) & _WORD, (k1 + _W1) & _WORD
    return x0, x1, x2, x3


def dither(key: int, offset: int, numel: int, step: int, rank: int, device: torch.device | None = None) -> Tensor:
    """The 16-bit dithers (int64, 0..65535) of the elements ``offset .. offset + numel - 1`` of a parameter."""
    first, last = offset // SUPERBLOCK, (offset + numel + SUPERBLOCK - 1) // SUPERBLOCK
    counters = torch.arange(16 * first, 16 * last, dtype=torch.int64, device=device)
    words = torch.stack(philox(counters, step, rank, 0, key)).view(4, -1, 16)  # word, superblock, lane
    halves = torch.stack((words & 0xFFFF, words >> 16), dim=1)  # word, half, superblock, lane
    flat = halves.permute(2, 0, 1, 3).reshape(-1)
    return flat[offset - first * SUPERBLOCK :][:numel]


def dither_of(key: int, offset: int, numel: int, step: int, ranks: Tensor, stream: int) -> Tensor:
    """The dithers of all ``ranks`` (int64, ``[n]``) from another stream than rounding's: ``[n, numel]``."""
    first, last = offset // SUPERBLOCK, (offset + numel + SUPERBLOCK - 1) // SUPERBLOCK
    counters = torch.arange(16 * first, 16 * last, dtype=torch.int64, device=ranks.device)
    shape = (len(ranks), len(counters))
    words = torch.stack(philox(counters.expand(shape), step, ranks[:, None].expand(shape), stream, key))
    words = words.view(4, len(ranks), -1, 16)  # word, rank, superblock, lane
    halves = torch.stack((words & 0xFFFF, words >> 16), dim=1)
    flat = halves.permute(2, 3, 0, 1, 4).reshape(len(ranks), -1)
    return flat[:, offset - first * SUPERBLOCK :][:, :numel]


def uniform(key: int, offset: int, numel: int, step: int, rank: int, device: torch.device | None = None) -> Tensor:
    """``U = (u + 1/2) / 65536`` in (0, 1), fp32 and exact: symmetric around 1/2, so rounding with it has no bias."""
    return dither(key, offset, numel, step, rank, device).to(torch.float32) * 2.0**-16 + 2.0**-17
