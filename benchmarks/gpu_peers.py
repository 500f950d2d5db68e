"""Other ways to do what the kernels do, written for this benchmark: what they are measured against.

"torch.compile" has the same formulas and payloads as the ops, for rows of whole blocks, so that its results can be
compared with theirs. "GRACE" is how that library (Xu et al. 2021, "GRACE: A compressed communication framework for
distributed machine learning") composes torch operators: memory, compression and decompression one after the other, a
byte for a sign. "cupy" is the compression of 1-bit Adam with ``cupy.packbits`` for its signs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BLOCK = 512


def qsgd4(x: Tensor, add: Tensor) -> tuple[Tensor, Tensor]:
    """(codes, steps) of 4-bit QSGD, max norm, rounding to nearest; x becomes the error."""
    y = (x.float() + add.float()).view(-1, BLOCK)
    norm = y.abs().amax(1, keepdim=True)
    top = torch.full_like(norm, 7.0)
    used = norm >= 2.0**-100
    steps = torch.where(used, norm / top, 0.0)
    q = torch.where(used, torch.round(y * (top / norm)), 0.0).clamp(-7, 7)
    codes = (q + 7).to(torch.uint8).view(-1, 2)
    x.copy_((y - q * steps).view(-1))
    return codes[:, 0] | codes[:, 1] << 4, steps.view(-1)


def sign(x: Tensor, add: Tensor) -> tuple[Tensor, Tensor]:
    """(bits, scales) of the sign with the mean magnitude of a block; x becomes the error."""
    y = (x.float() + add.float()).view(-1, BLOCK)
    scale = y.abs().mean(1, keepdim=True)
    negative = y < 0
    weights = 2 ** torch.arange(8, dtype=torch.uint8, device=x.device)
    x.copy_((y - torch.where(negative, -scale, scale)).view(-1))
    return (negative.view(-1, 8) * weights).sum(1, dtype=torch.uint8), scale.view(-1)


def topk(x: Tensor, add: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(indices, values) of the k largest magnitudes; x becomes the error."""
    y = x.float() + add.float()
    kept = torch.topk(y.abs(), k, sorted=False).indices
    values = y[kept]
    x.copy_(y.index_fill(0, kept, 0.0))
    return kept.to(torch.int32), values


def grace_sign(x: Tensor, add: Tensor) -> tuple[Tensor, Tensor]:
    """Memory, sign with one mean magnitude for all, a byte for each, decoded for the memory's update."""
    y = x + add
    mean = y.abs().mean()
    signs = (y >= 0).to(torch.uint8)
    decoded = (signs.to(y.dtype) * 2 - 1) * mean
    x.copy_(y - decoded)
    return signs, mean


def grace_topk(x: Tensor, add: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Memory, ``torch.topk`` and gather, scattered into zeros for the memory's update."""
    y = x + add
    kept = torch.topk(y.abs(), k, sorted=False).indices
    values = torch.gather(y, 0, kept)
    decoded = torch.zeros_like(y).scatter_(0, kept, values)
    x.copy_(y - decoded)
    return values, kept


def onebit(x: Tensor, add: Tensor, packbits: Any) -> tuple[Tensor, Tensor]:
    """1-bit Adam's: one root mean square for all, signs packed by ``packbits``; x becomes the error."""
    y = x + add
    scale = y.float().norm() / y.numel() ** 0.5
    positive = y >= 0
    x.copy_(y - torch.where(positive, scale, -scale).to(y.dtype))
    return packbits(positive), scale


def cupy_packbits() -> Any:
    """``cupy.packbits`` of a torch tensor, on torch's stream.

    Raises:
        ImportError: there is no cupy.
    """
    import cupy  # pyright: ignore[reportMissingImports]

    def packbits(signs: Tensor) -> Any:
        with cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream):
            return cupy.packbits(cupy.from_dlpack(signs.view(torch.uint8)))

    return packbits
