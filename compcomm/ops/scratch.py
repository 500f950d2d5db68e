"""Scratch memory for compressors that need a second buffer: kept between calls, never part of any state.

A compressor is a description without tensors, and fresh memory costs more than a kernel (each page is zeroed by the
system at its first touch). One buffer per stream, device, dtype and purpose is kept, as long as the longest request.

On a GPU what was left in a buffer may still be read by kernels that were only launched, and only the stream that they
are in says when they are done: a thread that goes from stream to stream gets another buffer in each. A thread is part
of the key too, as two of them may launch into one stream by turns. A step that is recorded as a CUDA graph is given
fresh memory, which lies in the graph's own pool: its replays use it for as long as the graph lives, whatever becomes of
ours.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.kept: dict[tuple[str, torch.dtype, torch.device, int], Tensor] = {}


_buffers = _Buffers()


def scratch(purpose: str, numel: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
    """``numel`` elements whose content is whatever was left there, valid until this thread asks again for the same in
    the same stream."""
    device = torch.device(device)
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return torch.empty(numel, dtype=dtype, device=device)
    key = (purpose, dtype, device, stream(device))
    found = _buffers.kept.get(key)
    if found is None or found.numel() < numel:
        found = _buffers.kept[key] = torch.empty(numel, dtype=dtype, device=device)
    return found[:numel]


def stream(device: torch.device) -> int:
    """The number of the stream into which this thread launches; 0 where there are none."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
