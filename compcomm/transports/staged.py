"""Collectives on a device's tensors for a group that moves host memory: Gloo with CUDA tensors.

Each tensor has a mirror in pinned memory. What is sent is copied there, and the calling thread waits for that, since
Gloo reads the mirror itself; what is received is copied back on the current stream. The thread that waits is not the
one that runs the backward pass, which goes on meanwhile (``engine.session``). One GPU with several processes, or
machines without NCCL, are served so: right, and as fast as the host's memory. Between GPUs with NCCL nothing of this
runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

import torch
from torch import Tensor

from ..core.collectives import Collective

_WRITTEN = ("recv", "buffer")


class Staging:
    """The mirrors of one transport, made at their first use and kept."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._mirrors: dict[tuple[int, torch.dtype], Tensor] = {}

    def down(self, op: Collective) -> tuple[Collective, Callable[[], None]]:
        """The same collective on the host, its input there; and what takes its result back to the device."""
        given = {f.name: getattr(op, f.name) for f in fields(op)}
        tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
        mirrors = {name: self._mirror(tensor) for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            if name != "recv":
                mirrors[name].copy_(tensor, non_blocking=True)
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()

        def back() -> None:
            for name in _WRITTEN:
                if name in tensors:
                    tensors[name].copy_(mirrors[name], non_blocking=True)

        return replace(op, **mirrors), back

    def _mirror(self, tensor: Tensor) -> Tensor:
        key = (tensor.data_ptr(), tensor.dtype)
        found = self._mirrors.get(key)
        if found is None or found.numel() < tensor.numel():
            pinned = self._device.type == "cuda"
            found = self._mirrors[key] = torch.empty(tensor.numel(), dtype=tensor.dtype, pin_memory=pinned)
        return found[: tensor.numel()]
