"""Bit streams: code ``j`` of ``b`` bits occupies bits ``j*b .. (j+1)*b - 1``, bit 0 = lowest bit of byte 0."""

from __future__ import annotations

import torch
from torch import Tensor

from .rows import ceil_div


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes below ``2**bits`` -> ``ceil(numel*bits/8)`` bytes; the bits after the last code are zero.

    Eight codes make ``bits`` bytes: the low ones of a 64-bit word.
    """
    if bits == 8:
        return codes
    groups = torch.nn.functional.pad(codes, (0, -codes.numel() % 8)).view(-1, 8)
    words = torch.zeros(len(groups), dtype=torch.int64, device=codes.device)
    for i in range(8):
        words |= groups[:, i].to(torch.int64) << i * bits
    return words.view(torch.uint8).view(-1, 8)[:, :bits].reshape(-1)[: packed_bytes(codes.numel(), bits)]


def unpack(raw: Tensor, bits: int, numel: int) -> Tensor:
    """The first ``numel`` codes of a bit stream, as uint8."""
    if bits == 8:
        return raw[:numel]
    groups = ceil_div(numel, 8)
    raw = torch.nn.functional.pad(raw, (0, groups * bits - raw.numel())).view(-1, bits)
    words = torch.nn.functional.pad(raw, (0, 8 - bits)).view(torch.int64)
    codes = torch.empty(groups, 8, dtype=torch.uint8, device=raw.device)
    for i in range(8):
        codes[:, i] = (words[:, 0] >> i * bits) & (2**bits - 1)
    return codes.view(-1)[:numel]


def packed_bytes(numel: int, bits: int) -> int:
    """Bytes of a stream of ``numel`` codes."""
    return ceil_div(numel * bits, 8)
