"""TernGrad: minus one, zero or one times a magnitude per block; five elements to a byte."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, sqrt

from torch import Tensor

from ..core.compressor import Compressor, ops
from ..core.random import Rng
from ..core.rows import Find, Inputs, Uniform
from ..ops.reference.trits import packed_bytes
from .qsgd import check_block


@dataclass(frozen=True, repr=False)
class TernGrad(Compressor):
    """C(x)_j = s sign(x_j) b_j with b_j = 1 at probability |x_j|/s, else 0, and s = max|x| per block of n elements.

    Unbiased, with exact variance |x|_max |x|_1 - |x|^2. With s = 1 and T = |x|^2 - 1, the sum of the other squares,
    |x|_1 <= 1 + sqrt((n - 1) T), so |x|_max |x|_1/|x|^2 <= (1 + sqrt((n - 1) T))/(1 + T) <= (1 + sqrt(n))/2:
    omega = (sqrt(n) - 1)/2, attained by one element at 1 and the others at 1/(1 + sqrt(n)); 10.8 in blocks of 512.
    delta = 1 - omega where positive (n < 9). Under error feedback it is shrunk to ``Contractive(TernGrad())``.

    ``clip=c``: s = min(max|x|, c sigma), and larger elements are cut to s, where sigma = |x|/sqrt(n) is the block's
    root mean square around zero. Biased, as elements are cut; smaller variance of the rest. No delta: a block that is
    mostly at s/4, with one element so large that it defines sigma, loses more than its square when blocks are long.

    Wire, per parameter: for each block s (fp32), then q + 1 in base three, five to a byte: in each group of 80 elements
    byte l (0 to 15) is the sum over k = 0..4 of 3^k (q + 1) of the group's element 16 k + l. Of a last group of r < 80
    elements the first min(r, 16) bytes are there, missing elements counting 0; padded to four bytes. Blocks of 512:
    1.66 bits per element. Any byte decodes to -1, 0, 1: above 242, which none sends, it counts as 243 less.
    Blocks with s below 2**-100 are sent as zero; none is clipped whose sum of squares is below that or overflows.
    Not linear: ``SharedScale`` gives all ranks one s, and sums integers. No state.

    Source: Wen et al. 2017 (arXiv:1705.07878), equation 1, and clipping (section on gradient clipping; 2.5 there). The
    published code takes sigma around the mean, which is nearly zero in gradients; blocks stand for layers here, and
    real base-three packing for two bits. Dithers have 16 bits.

    Args:
        clip: at least 1, in root mean squares; None: none.
        block: elements that share s, a multiple of 16; a block never straddles two parameters.
    """

    clip: float | None = None
    block: int = 512
    dense_below: int = 1024

    keeps_zeros = True
    hint = "Use TernGrad(clip=2.5) without feedback, or TwoMeans(), a contraction at fewer bits."

    def __post_init__(self) -> None:
        super().__post_init__()
        clip = self.clip
        if clip is not None and (isinstance(clip, bool) or not isinstance(clip, int | float) or not 1 <= clip < inf):
            raise ValueError(
                f"{self!r}: clip={clip!r} is not a finite number from 1 on: less than one root mean square would cut "
                "elements of ordinary size. Use clip=2.5, or None for none."
            )
        check_block(repr(self), self.block)

    @property
    def alignment(self) -> int:
        return self.block

    @property
    def uniform(self) -> Uniform | None:
        return Uniform(1, self.block, norm2=False, stochastic=True) if self.clip is None else None

    @property
    def unbiased(self) -> bool:
        return self.clip is None

    def omega(self, numel: int) -> float | None:
        return (sqrt(max(1, min(numel, self.block))) - 1.0) / 2.0 if self.unbiased else None

    def delta(self, numel: int) -> float | None:
        omega = self.omega(numel)
        return 1.0 - omega if omega is not None and omega < 1.0 else None

    def section(self, numel: int) -> int:
        return 4 * -(-numel // self.block) + packed_bytes(numel)

    def encode_rows(self, i: Inputs, gain: Tensor, rng: Rng, hints: Mapping[str, Tensor], find: Find) -> None:
        ops.ternary_encode(*i, gain, self.clip or 0.0, self.block, rng.step, rng.rank)

    def decode_rows(
        self, wires: Tensor, table: Tensor, skip: Tensor, out: Tensor, scale: float, accumulate: bool, rng: Rng,
        find: Find,
    ) -> None:  # fmt: skip
        ops.ternary_decode(wires, table, skip, out, scale, accumulate, self.block)
