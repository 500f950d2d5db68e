"""BlockRandK: blocks at random, the same on every rank, so that no place crosses the wire."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.layout import Segment
from ..core.random import Rng
from .block_topk import Blocks


@dataclass(frozen=True, repr=False)
class BlockRandK(Blocks):
    """C(x) = x on k = max(1, ceil(ratio * nb)) of the nb = ceil(d/block) blocks of a parameter, 0 elsewhere; all sets
    of k are equally likely, and every step has another. Unbiased form (nb/k) C(x).

    Biased form (default, the one for error feedback): delta = k/nb, with equality in expectation. Unbiased form:
    omega = nb/k - 1, with equality. Linear: all ranks draw the same blocks, so payloads can be summed by an all-reduce.
    Against ``RandK`` whole blocks are copied, not single elements, and neighbours come and go together.

    Wire, per parameter: k blocks by ascending place (fp32, the last block of a parameter filled up with zeros), 32 bits
    per kept element. No state.

    Source: Vogels, Karimireddy, Jaggi 2019 (arXiv:1905.13727), random block, with one block; Fei, Ho, Sahu, Canini,
    Sapio 2021, OmniReduce (SIGCOMM), block random-k.
    """

    unbiased: bool = False  # type: ignore[assignment]

    linear = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.unbiased, bool):
            raise ValueError(f"{self!r}: unbiased={self.unbiased!r} is neither True nor False.")

    def _share(self, numel: int) -> float:
        return self.picked(numel) / -(-numel // self.block) if numel else 1.0

    def delta(self, numel: int) -> float | None:
        share = self._share(numel)
        return share if not self.unbiased else 2.0 - 1.0 / share if share > 0.5 else None

    def omega(self, numel: int) -> float | None:
        return 1.0 / self._share(numel) - 1.0 if self.unbiased else None

    def gain(self, numel: int) -> float:
        return 1.0 / self._share(numel) if self.unbiased else 1.0

    def section(self, numel: int) -> int:
        return 4 * self.picked(numel) * self.block

    def encode(self, y: Tensor, segment: Segment, rng: Rng) -> Tensor:
        blocks = self.cut(y)
        return blocks[rng.choose(segment, y.device, self.picked(len(y)), len(blocks))].view(-1)

    def decode(self, code: Tensor, segment: Segment, rng: Rng) -> Tensor:
        k = self.picked(segment.numel)
        picks = rng.choose(segment, code.device, k, -(-segment.numel // self.block))
        return self.join(picks, code.view(torch.float32).view(k, -1), segment.numel)
