"""Rotated: a quantiser between a random rotation and its inverse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import lcm

import torch
from torch import Tensor

from ..core.compressor import ops
from ..core.random import Rng
from ..core.rows import Find, Inputs
from ..ops.hadamard import LARGEST
from ..ops.scratch import scratch
from ..ops.work import kept
from .topk import is_integer
from .wrapper import CompressorWrapper


@dataclass(frozen=True, repr=False)
class Rotated(CompressorWrapper):
    """C'(x) = R^T C(R x), with R = (1/sqrt n) H diag(signs) in blocks of n = ``block`` elements of a parameter.

    R spreads every element over its block, so that what C sees is close to Gaussian whatever the gradient is. What is
    left at a parameter's end is cut into descending powers of two (2049 = 2048 + 1): R is exactly orthogonal on R^d,
    the payload is as long as C's, and linear, unbiased, delta and omega are those of C for every input. The signs come
    from seed, name and step, not from the rank: all ranks share R, so a linear C stays linear. Never sparse: what is
    decoded is dense. 12 additions per element at 4096, no bits. No state of its own.

    What improves is the error on real inputs, not the bound. For Gaussian x nothing changes. Fewer than all rotations
    are drawn, so inputs remain on which a block is far from Gaussian: with one bit, x = e_i is sent exactly, and
    x = e_i + e_j loses half of |x|^2 (all of it with the unbiased scale), where Gaussian data lose 1 - 2/pi = 0.363.

    - ``Rotated(SignScale(block=n), n)`` is DRIVE (Vargaftik et al. 2021, arXiv:2105.08339) with its biased scale;
      theirs is one rotation and scale for the whole vector, padded to a power of two, ours per block.
    - ``Rotated(LloydMax(bits))`` is EDEN (Vargaftik et al. 2022, arXiv:2108.08842), likewise by blocks.
    - ``Rotated(Grid(bits))`` has the grid of QuEST (Panferov et al. 2025, arXiv:2502.05003), which rotates in blocks of
      128; its mask for the backward pass has no use here.

    Wire: C's, for R x. A block with a number of 2^64 or more is rotated to zero, flagged and stays in x.

    Args:
        compressor: C. Its own blocks may be of any size.
        block: a power of two from 16 to 2^20; a first-level cache holds 4096.
    """

    block: int = 4096

    keeps_zeros = sparse = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.compressor, Rotated):
            raise ValueError(f"{self!r}: one random rotation is as good as two. Use {self.compressor!r}.")
        if not is_integer(self.block) or not 16 <= self.block <= LARGEST or self.block & (self.block - 1):
            raise ValueError(f"{self!r}: block={self.block!r} is not a power of two from 16 to {LARGEST}.")

    @property
    def hint(self) -> str:  # type: ignore[override]
        return self.compressor.hint

    @property
    def alignment(self) -> int:
        return lcm(self.block, self.compressor.alignment)

    @property
    def unbiased(self) -> bool:
        return self.compressor.unbiased

    def delta(self, numel: int) -> float | None:
        return self.compressor.delta(numel)

    def omega(self, numel: int) -> float | None:
        return self.compressor.omega(numel)

    def encode_rows(self, i: Inputs, gain: Tensor, rng: Rng, hints: Mapping[str, Tensor], find: Find) -> None:
        inner, outer, z = _rotate(i.table, i.x.device)
        vector = z.view(torch.uint8)
        ops.hadamard_forward(i.x, i.add, vector, outer, i.status, i.decay, i.add_scale, self.block, rng.step)
        # That z is not zero says nothing of the gradient.
        status = scratch("rotated status", i.status.numel(), torch.uint8, i.status.device).zero_()
        self.compressor.encode_rows(Inputs(z, None, i.wire, inner, status, 1.0, 1.0), gain, rng, hints, find)
        i.status[0] |= status[0]
        nothing = scratch("rotated skip", status.numel() - 1, torch.uint8, i.status.device).zero_()
        self.compressor.decode_rows(i.wire.unsqueeze(0), inner, nothing, z, 1.0, False, rng, find)
        ops.hadamard_inverse(vector.unsqueeze(0), outer, nothing, i.x, -1.0, True, self.block, rng.step)

    def decode_rows(
        self, wires: Tensor, table: Tensor, skip: Tensor, out: Tensor, scale: float, accumulate: bool, rng: Rng,
        find: Find,
    ) -> None:  # fmt: skip
        inner, outer, z = _rotate(table, out.device)
        self.compressor.decode_rows(wires, inner, skip, z, 1.0, False, rng, find)
        rotated = z.view(torch.uint8).unsqueeze(0)
        ops.hadamard_inverse(rotated, outer, skip, out, scale, accumulate, self.block, rng.step)

    def zero_rows(self, wire: Tensor, table: Tensor, out: Tensor, rng: Rng, find: Find) -> None:
        super(CompressorWrapper, self).zero_rows(wire, table, out, rng, find)  # all: what is decoded is dense


def _rotate(table: Tensor, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(the table of C, whose x is R x; that of R, whose wire is R x; memory for R x). Absent rows stay absent."""
    inner, outer, numel = kept(table, "rotated", partial(_tables, table))
    return inner, outer, scratch("rotated", numel, device=device)


def _tables(table: Tensor) -> tuple[Tensor, Tensor, int]:
    inner, outer = table.clone(), table.clone()
    here = table[:, 0] >= 0
    room = torch.where(here, (table[:, 2] + 15) // 16 * 16, 0)  # whole cache lines
    ends = room.cumsum(0)
    inner[:, 0], inner[:, 1] = torch.where(here, ends - room, -1), -1
    outer[:, 3] = 4 * (ends - room)
    return inner, outer, int(ends[-1]) if len(ends) else 0
