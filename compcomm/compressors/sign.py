"""SignScale: one bit per element and one magnitude per block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..core.compressor import Compressor, ops
from ..core.random import Rng
from ..core.rows import Find, Inputs, Received
from .qsgd import check_block

_SCALES = ("l1", "l2", "dot")  # as the op numbers them


@dataclass(frozen=True, repr=False)
class SignScale(Compressor):
    """C(x)_j = S sgn(x_j), sgn(0) = +1, per block of n with S = |x|_1/n (scale="l1"), |x|_2/sqrt(n) (scale="l2") or
    |x|_2^2/|x|_1 (scale="dot").

    l1: |x - C(x)|^2 = |x|^2 - |x|_1^2/n exactly, so delta = |x|_1^2/(n |x|^2) >= 1/n (2/pi on Gaussian data).
    l2: keeps the norm, |x - C(x)|^2 = 2|x|^2 (1 - |x|_1/(sqrt(n) |x|)): more than |x|^2 on sparse blocks, hence no
    contraction and refused by error feedback.
    dot: <x, C(x)> = |x|^2 for every x, |x - C(x)|^2 = |x|^2 (n |x|^2/|x|_1^2 - 1): pi/2 - 1 on Gaussian data, up to
    n - 1, hence no contraction. Unbiased if a uniformly random rotation goes before; ``Rotated`` only comes near.
    All biased, not linear.

    Wire, per parameter: ceil(d/block) scales (fp32), then ceil(d/8) bytes of signs (1 = negative), low bit first,
    padded to four bytes. Blocks of 512: 1.0625 bits per element. No state.

    Source: l1, Karimireddy et al. 2019 (arXiv:1901.09847), Algorithm 1; l2, the scale of 1-bit Adam's published code;
    dot, DRIVE's unbiased scale (Vargaftik et al. 2021, arXiv:2105.08339).
    """

    scale: str = "l1"
    block: int = 512
    dense_below: int = 1024

    hint = "Use SignScale(scale='l1'), whose error never exceeds the input."

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale not in _SCALES:
            raise ValueError(f"{self!r}: scale={self.scale!r} is none of 'l1', 'l2' and 'dot'.")
        check_block(repr(self), self.block)

    @property
    def alignment(self) -> int:
        return self.block

    def delta(self, numel: int) -> float | None:
        return 1.0 / max(1, min(numel, self.block)) if self.scale == "l1" else None

    def section(self, numel: int) -> int:
        return 4 * -(-numel // self.block) + -(-numel // 8)

    def encode_rows(self, i: Inputs, gain: Tensor, rng: Rng, hints: Mapping[str, Tensor], find: Find) -> None:
        ops.sign_encode(*i, _SCALES.index(self.scale), self.block)

    @property
    def reencodes(self) -> bool:
        return True

    def reencode_rows(self, i: Inputs, received: Received, gain: Tensor, rng: Rng) -> None:
        x, scales = (None, i.decay) if i.add is None else (i.x, i.add_scale)
        wires, table, skip, scale = received
        tail = (_SCALES.index(self.scale), self.block)
        ops.sign_reencode(x, wires, table, skip, i.wire, i.table, i.status, scale, scales, *tail)

    def decode_rows(
        self, wires: Tensor, table: Tensor, skip: Tensor, out: Tensor, scale: float, accumulate: bool, rng: Rng,
        find: Find,
    ) -> None:  # fmt: skip
        ops.sign_decode(wires, table, skip, out, scale, accumulate, self.block)
