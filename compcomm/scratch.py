"""Scratch memory for compressors that need a second buffer: kept between calls, never part of any state.

A compressor is a description without tensors, and fresh memory costs more than a kernel (each page is zeroed by the
system at its first touch). One buffer per thread, device, dtype and purpose is kept, as long as the longest request.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.kept: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}


_buffers = _Buffers()


def scratch(purpose: str, numel: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
    """``numel`` elements whose content is whatever was left there, valid until this thread asks again for the same."""
    key = (purpose, dtype, torch.device(device))
    found = _buffers.kept.get(key)
    if found is None or found.numel() < numel:
        found = _buffers.kept[key] = torch.empty(numel, dtype=dtype, device=device)
    return found[:numel]
