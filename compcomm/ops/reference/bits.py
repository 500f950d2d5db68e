"""Bit streams: code ``j`` of ``b`` bits occupies bits ``j*b .. (j+1)*b - 1``, bit 0 = lowest bit of byte 0."""

from __future__ import annotations

import torch
from torch import Tensor

from .rows import ceil_div


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes below ``2**bits`` -> ``ceil(numel*bits/8)`` bytes; the bits after the last code are zero."""
    if bits == 8:
        return codes
    place = torch.arange(bits, dtype=torch.uint8, device=codes.device)
    stream = ((codes.view(-1, 1) >> place) & 1).reshape(-1)
    stream = torch.nn.functional.pad(stream, (0, -stream.numel() % 8)).view(-1, 8)
    weight = 2 ** torch.arange(8, dtype=torch.uint8, device=codes.device)
    return (stream * weight).sum(1, dtype=torch.uint8)


def unpack(raw: Tensor, bits: int, numel: int) -> Tensor:
    """The first ``numel`` codes of a bit stream, as uint8."""
    if bits == 8:
        return raw[:numel]
    stream = ((raw.view(-1, 1) >> torch.arange(8, dtype=torch.uint8, device=raw.device)) & 1).reshape(-1)
    weight = 2 ** torch.arange(bits, dtype=torch.uint8, device=raw.device)
    return (stream[: numel * bits].view(-1, bits) * weight).sum(1, dtype=torch.uint8)


def packed_bytes(numel: int, bits: int) -> int:
    """Bytes of a stream of ``numel`` codes."""
    return ceil_div(numel * bits, 8)
