"""BlockTopK: the blocks of largest norm, whole: few places, and no search among single elements."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.compressor import Compressor
from ..core.layout import Segment
from ..core.random import Rng
from .topk import check_density, count, is_integer


@dataclass(frozen=True, repr=False)
class Blocks(Compressor, ABC, abstract=True):
    """Sends some blocks of a parameter, whole. ``picked``: how many of a parameter's."""

    ratio: float
    block: int = 256
    dense_below: int = 1024

    sparse = True
    keeps_zeros = True
    tunable = "ratio"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_density(repr(self), self.ratio, None)
        if not is_integer(self.block) or self.block < 1:
            raise ValueError(f"{self!r}: block={self.block!r} is not a positive number of elements.")

    @property
    def alignment(self) -> int:
        return self.block

    def picked(self, numel: int) -> int:
        """Of ceil(numel/block) blocks, a share of ``ratio``, at least one."""
        return count(repr(self), self.ratio, None, -(-numel // self.block))

    def kept(self, numel: int) -> int:
        return min(numel, self.picked(numel) * self.block)

    def cut(self, y: Tensor) -> Tensor:
        """A parameter as blocks, the last one filled up with zeros: [blocks, block]."""
        return F.pad(y, (0, -len(y) % self.block)).view(-1, self.block)

    def join(self, picks: Tensor, values: Tensor, numel: int) -> Tensor:
        """The parameter whose blocks ``picks`` are the rows of ``values``, all others zero."""
        blocks = torch.zeros(-(-numel // self.block), self.block, dtype=torch.float32, device=values.device)
        return blocks.index_copy_(0, picks, values).view(-1)[:numel]


@dataclass(frozen=True, repr=False)
class BlockTopK(Blocks):
    """C(x) keeps, of the nb = ceil(d/block) blocks of a parameter, the k = max(1, ceil(ratio * nb)) of largest |.|_2.

    delta = k/nb, and |x - C(x)|^2 = |x|^2 - |C(x)|^2 always. It keeps less than ``TopK`` of as many elements, for 32
    bits each in place of 48, and one norm per block in place of a search. Where gradients are zero in blocks, as those
    of embeddings, nothing is lost. Biased, not linear.

    Wire, per parameter: k numbers of blocks (u32, by falling norm), then k blocks (fp32, the last block of a parameter
    filled up with zeros): 32 (1 + 1/block) bits per kept element. Squares overflow from 1.8e19 on; what is beyond that
    is chosen first. No state.

    Source: Fei, Ho, Sahu, Canini, Sapio 2021, OmniReduce (SIGCOMM), block top-k.

    Args:
        ratio: share of the blocks in (0, 1], per parameter.
        block: elements that are sent or left together.
    """

    def delta(self, numel: int) -> float | None:
        return self.picked(numel) / -(-numel // self.block) if numel else 1.0

    def section(self, numel: int) -> int:
        return self.picked(numel) * (4 + 4 * self.block)

    def encode(self, y: Tensor, segment: Segment, rng: Rng) -> Tensor:
        blocks = self.cut(y)
        picks = blocks.norm(dim=1).topk(self.picked(len(y))).indices
        return torch.cat((picks.int(), blocks[picks].view(-1).view(torch.int32)))

    def decode(self, code: Tensor, segment: Segment, rng: Rng) -> Tensor:
        k, most = self.picked(segment.numel), -(-segment.numel // self.block) - 1
        picks, values = code.view(torch.int32).tensor_split([k])
        return self.join(picks.long().clamp(0, most), values.view(torch.float32).view(k, -1), segment.numel)
