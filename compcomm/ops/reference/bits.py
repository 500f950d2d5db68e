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


def pack12(places: Tensor) -> Tensor:
    """Numbers below 4096, two in three bytes: a stream of 12 bits each."""
    a, b = torch.nn.functional.pad(places, (0, len(places) % 2)).view(-1, 2).unbind(1)
    packed = torch.stack((a & 255, a >> 8 | (b & 15) << 4, b >> 4), dim=1).to(torch.uint8)
    return packed.view(-1)[: packed_bytes(len(places), 12)]


def unpack12(packed: Tensor, count: int) -> Tensor:
    """The first ``count`` numbers of such a stream, int64."""
    low, middle, high = torch.nn.functional.pad(packed, (0, -packed.numel() % 3)).view(-1, 3).long().unbind(1)
    return torch.stack((low | (middle & 15) << 8, middle >> 4 | high << 4), dim=1).view(-1)[:count]
