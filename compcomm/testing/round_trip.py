"""One parameter, or many of the same size, through a compressor and back."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.compressor import Compressor, Payload
from ..core.layout import Bucket, Layout, Segment
from ..core.random import Rng
from .inputs import segment

FIRST = Rng()


class Trip(NamedTuple):
    """What went in, what came out, and what was left behind."""

    y: Tensor
    value: Tensor
    error: Tensor
    payload: Payload

    @property
    def section(self) -> Tensor:
        """The coded bytes of the (one) parameter."""
        (row,) = self.payload.packing.coded
        return self.payload.wire[row.wire : row.wire + self.payload.compressor.section(row.segment.numel)]


def trip(c: Compressor, y: Tensor, rng: Rng = FIRST, name: str = "w", piece: Segment | None = None) -> Trip:
    """Encodes and decodes one vector, as a whole parameter of shape (1, n) or as a piece of one."""
    s = piece or segment(y.numel(), name)
    layout = Layout([Segment(s.name, s.shape, 0, s.numel, s.offset)])
    x = Bucket(y.clone(), layout)
    payload = c.encode_(x, rng)
    return Trip(y, payload.dense(layout).flat, x.flat, payload)


@lru_cache(maxsize=64)
def _alike(count: int, numel: int) -> Layout:
    return Layout.of((f"w{i}", (1, numel)) for i in range(count))


def trips(c: Compressor, ys: Tensor, rng: Rng = FIRST) -> Trip:
    """Encodes and decodes the rows of a matrix in one bucket, each a parameter with its own name."""
    layout = _alike(*ys.shape)
    x = Bucket(ys.clone(memory_format=torch.contiguous_format).view(-1), layout)
    payload = c.encode_(x, rng)
    return Trip(ys, payload.dense(layout).flat.view_as(ys), x.flat.view_as(ys), payload)


def errors(c: Compressor, ys: Tensor, rng: Rng = FIRST) -> Tensor:
    """What coding the rows of a matrix, each a parameter, leaves of them."""
    x = Bucket(ys.clone(memory_format=torch.contiguous_format).view(-1), _alike(*ys.shape))
    c.encode_(x, rng)
    return x.flat.view(ys.shape)


def draws(c: Compressor, y: Tensor, count: int, rng: Rng = FIRST) -> Tensor:
    """``count`` independent decodings of one vector, [count, n]: as many parameters, each with its own name."""
    return trips(c, y.expand(count, -1), rng).value


def accepts(c: Compressor, numel: int) -> bool:
    """Whether the compressor codes parameters of that size: k may exceed it, or they may travel exact."""
    try:
        c.section(numel)
    except ValueError:
        return False
    return not c.exact(segment(numel))


def nothing_skipped(payload: Payload) -> Tensor:
    """The skip vector that rules nothing out."""
    return torch.zeros(payload.packing.count, dtype=torch.uint8)
