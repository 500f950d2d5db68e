"""Natural: powers of two, by random rounding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..compressor import Compressor, Inputs, ops
from ..rng import Rng


@dataclass(frozen=True, repr=False)
class Natural(Compressor):
    """C(x)_j = sgn(x_j) 2^e or sgn(x_j) 2^(e+1) for |x_j| = 2^e (1 + m), the larger with probability m.

    Unbiased. The relative variance of an element is m (1 - m)/(1 + m)^2, at most 1/8 (at m = 1/3; 0.082 on Gaussian
    data), so omega = 1/8 and delta = 7/8 whatever the vector: no norm, no block, nothing shared between elements.
    Not linear. No state.

    Wire, per parameter: d bytes of exponents (0: zero; else the value is 2^(byte - 127)), then ceil(d/8) bytes of signs
    (1 = negative), low bit first; padded to four bytes. 9 bits per element.

    The ends of the range: denormals (|x_j| < 2^-126) go to 0 or 2^-126, unbiased, with a variance of at most 2^-126
    |x_j|, which no multiple of x_j^2 bounds. What would round up to 2^128 is sent as 2^127, and its step counts as
    overflow. Probabilities are multiples of 2^-16; a power of two is always sent as itself.

    Source: Horvath et al. 2019 (arXiv:1905.10988), Definition 1 and Theorem 1.
    """

    dense_below: int = 1024

    @property
    def unbiased(self) -> bool:
        return True

    def omega(self, numel: int) -> float | None:
        return 0.125

    def delta(self, numel: int) -> float | None:
        return 0.875

    def section(self, numel: int) -> int:
        return numel + -(-numel // 8)

    def encode_rows(self, i: Inputs, gain: Tensor, rng: Rng, hints: Mapping[str, Tensor]) -> None:
        ops.natural_encode(*i, gain, rng.step, rng.rank)

    def decode_rows(
        self, wires: Tensor, table: Tensor, skip: Tensor, out: Tensor, scale: float, accumulate: bool, rng: Rng
    ) -> None:
        ops.natural_decode(wires, table, skip, out, scale, accumulate)
