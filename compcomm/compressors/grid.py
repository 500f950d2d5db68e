"""Grid: the uniform grid that loses least on normally distributed numbers."""

from __future__ import annotations

from dataclasses import dataclass

from .codebook import Codebook
from .gaussian import uniform
from .topk import is_integer


@dataclass(frozen=True, repr=False)
class Grid(Codebook):
    """C(x) = S c per block of n: sigma = |x|_2/sqrt(n), c_j the nearest to x_j/sigma of the 2^bits levels +-D/2,
    +-3D/2, ..., +-a_b, and S = <c,x>/|c|^2, the projection on c. ``Rotated(Grid(bits))`` is QuEST's quantiser.

    a_b = 0.7979, 1.4935, 2.0511, 2.5140, 2.9162, 3.2780, 3.6111, 3.9221 for 1 to 8 bits: the clip range that loses
    least on N(0, 1), where the relative error is 0.36338, 0.11885, 0.03744, 0.011543, 0.0034952, 0.0010400, 3.04e-4,
    8.77e-5.
    Equal steps serve integer arithmetic; ``LloydMax`` loses less, from 1 % less at 2 bits to half at 8.

    |x - C(x)|^2 = |x|^2 - |C(x)|^2 for every input, a contraction; ``delta`` is a bound of the cosine between c and x
    over all inputs (small: one element may hold everything). Biased, not linear. No state.

    Wire, per parameter: ceil(d/block) scales S (fp32), then the codes, the rank of the level, ascending, element j in
    bits [j bits, (j+1) bits), low bit first, padded to four bytes. 4 bits and blocks of 512: 4.06 bits per element.
    Blocks without an element of 2**-100 or more are sent as zero.

    Source: Panferov et al. 2025 (QuEST, arXiv:2502.05003), section 3. Where we differ: S projects (theirs is sigma), so
    that no input makes the error exceed |x|^2 and none is worse off; the exact optimum of a_7 and a_8.

    Args:
        bits: 1 to 8.
        block: elements that share a scale, a multiple of 16.
    """

    bits: int  # pyright: ignore[reportIncompatibleVariableOverride]
    block: int = 512
    dense_below: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_integer(self.bits) or not 1 <= self.bits <= 8:
            raise ValueError(f"{self!r}: bits={self.bits!r} is no whole number from 1 to 8. LloydMax takes fractions.")

    def half(self, bits: int) -> tuple[float, ...]:
        return uniform(bits)
