"""Digits 0, 1, 2, five to a byte: 1.6 bits each, where 1.585 is the least.

Groups of 80 digits make sixteen bytes: byte l of a group is ``d[l] + 3 d[16+l] + 9 d[32+l] + 27 d[48+l] + 81 d[64+l]``.
Of a last group of r < 80 digits only the first ``min(r, 16)`` bytes are there, and digits that are missing count as 0.
Every byte can be read: those above 242, which no encoder writes, are read as 243 less.
"""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 80


def pack(digits: Tensor) -> Tensor:
    """uint8 digits -> ``packed_bytes(numel)`` bytes."""
    groups = torch.nn.functional.pad(digits, (0, -digits.numel() % GROUP)).view(-1, 5, 16)
    total = groups[:, 4]
    for k in (3, 2, 1, 0):
        total = 3 * total + groups[:, k]
    return total.reshape(-1)[: packed_bytes(digits.numel())]


def unpack(raw: Tensor, numel: int) -> Tensor:
    """The first ``numel`` digits, as uint8."""
    rest = torch.nn.functional.pad(raw, (0, -raw.numel() % 16)).view(-1, 16)
    digits: list[Tensor] = []
    for _ in range(5):
        digits.append(rest % 3)
        rest = rest // 3
    return torch.stack(digits, 1).view(-1)[:numel]


def packed_bytes(numel: int) -> int:
    """Bytes of so many digits."""
    return numel // GROUP * 16 + min(numel % GROUP, 16)
