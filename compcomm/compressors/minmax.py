"""MinMax: equal levels from each block's least element to its greatest, packed to 1..8 bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..core.compressor import Compressor, ops
from ..core.random import Rng
from ..core.rows import Find, Inputs
from .qsgd import check_block
from .topk import is_integer


@dataclass(frozen=True, repr=False)
class MinMax(Compressor):
    """C(x)_j = min + u q_j, q_j = round((x_j - min)/u), with u = (max - min)/L, L = 2**bits - 1, per block of n.

    Where all elements are far from zero, or of one sign, no level is spent on what does not occur. Zero itself is a
    level only by chance, so blocks that are mostly zero suit ``QSGD`` or ``TopK`` better.

    ``rounding="stochastic"`` (default): unbiased, with exact variance u^2 sum f_j (1 - f_j), f = frac((x - min)/u).
    The two extremes are exact and |x|^2 >= min^2 + max^2 >= (max - min)^2/2 = L^2 u^2/2, and f (1 - f) <= 1/4 for the
    others, so omega = (n - 2)/(2 L^2) for every x, attained by one element at -1, one at 1 and zeros: 1.13 for 4 bits
    and blocks of 512, 0.26 for 5 bits.
    ``rounding="nearest"`` (halves to even): no error exceeds u/2, so |x - C(x)|^2 <= (n - 2)/(2 L^2) |x|^2 likewise;
    draws no random numbers.
    delta = 1 - (n - 2)/(2 L^2) for both where that is positive: 5 bits and more in blocks of 512.

    Wire, per parameter: for each block min and max (fp32), then ceil(d bits/8) bytes of levels q, element j in bits
    [j bits, (j+1) bits), low bit first; padded to four bytes. 4 bits and blocks of 512: 4.125 bits per element.
    Level L decodes to max itself and level 0 to min: constants and extremes are exact, and coding a decoded block once
    more loses nothing. A range below 2**-100 is sent as min; one that overflows fp32 is not sent, and flagged like a
    non-finite number. Not linear. No state.

    Source: the quantiser of CGX, Markov, Ramezanikebrya, Alistarh 2022 (arXiv:2111.08617), which sends u instead of
    max. Dithers have 16 bits; a fraction that is within the rounding errors of fp32 of a level is rounded to it.

    Args:
        bits: 1 to 8 bits per element.
        rounding: "stochastic" or "nearest".
        block: elements that share min and max, a multiple of 16; a block never straddles two parameters.
    """

    bits: int
    rounding: str = "stochastic"
    block: int = 512
    dense_below: int = 1024

    tunable = "bits"
    hint = (
        "Use rounding='stochastic', which feedback shrinks to Contractive(...), more bits, a smaller block, or "
        "QSGD(bits=4, rounding='nearest'), a contraction for every number of bits."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_integer(self.bits) or not 1 <= self.bits <= 8:
            raise ValueError(f"{self!r}: bits={self.bits!r} is not one of 1 to 8. Use Cast(bfloat16) for 16 bits.")
        if self.rounding not in ("stochastic", "nearest"):
            raise ValueError(f"{self!r}: rounding={self.rounding!r} is neither 'stochastic' nor 'nearest'.")
        check_block(repr(self), self.block)

    @property
    def alignment(self) -> int:
        return self.block

    @property
    def unbiased(self) -> bool:
        return self.rounding == "stochastic"

    def omega(self, numel: int) -> float | None:
        return self._loss(numel) if self.unbiased else None

    def delta(self, numel: int) -> float | None:
        return 1.0 - self._loss(numel) if self._loss(numel) < 1.0 else None

    def _loss(self, numel: int) -> float:
        """(n - 2)/(2 L^2): the most that a block can lose, of its square."""
        return max(0, min(numel, self.block) - 2) / (2.0 * (2**self.bits - 1) ** 2)

    def section(self, numel: int) -> int:
        return 8 * -(-numel // self.block) + -(-numel * self.bits // 8)

    def encode_rows(self, i: Inputs, gain: Tensor, rng: Rng, hints: Mapping[str, Tensor], find: Find) -> None:
        ops.minmax_encode(*i, gain, self.bits, self.unbiased, self.block, rng.step, rng.rank)

    def decode_rows(
        self, wires: Tensor, table: Tensor, skip: Tensor, out: Tensor, scale: float, accumulate: bool, rng: Rng,
        find: Find,
    ) -> None:  # fmt: skip
        ops.minmax_decode(wires, table, skip, out, scale, accumulate, self.bits, self.block)
