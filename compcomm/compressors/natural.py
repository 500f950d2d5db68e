"""Natural: powers of two, by random rounding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import inf, sqrt

from torch import Tensor

from ..core.compressor import Compressor, ops
from ..core.random import Rng
from ..core.rows import Find, Inputs
from .qsgd import check_block
from .topk import is_integer


@dataclass(frozen=True, repr=False)
class Natural(Compressor):
    """C(x)_j = sgn(x_j) 2^e or sgn(x_j) 2^(e+1) for |x_j| = 2^e (1 + m), the larger with probability m.

    ``bits=9`` (default), natural compression: unbiased. The relative variance of an element is m (1 - m)/(1 + m)^2, at
    most 1/8 (at m = 1/3; 0.082 on Gaussian data), so omega = 1/8 and delta = 7/8 whatever the vector: no norm, no
    block, nothing shared between elements.

    ``bits`` 2 to 8, natural dithering: the levels are 0 and N 2^-k, k = 0..s-1, s = 2^(bits-1) - 1, N the block's norm,
    again with unbiased random rounding between neighbours. With a = 2^(1-s), the lowest level over N, r = |x_j|/N has
    variance at most r^2/8 above it and r (a - r) below; over blocks of n elements that makes
    norm=inf: omega = max(1/8, (sqrt(1 + (n-1) a^2) - 1)/2), the maximum being without error: 1/8 from 4 bits on.
    norm=2, c = a sqrt(n): omega = 1/8 + 2 c^2/9 where c <= 9/4, else c - 1.
    (s = 1 has no 1/8: nothing lies above the lowest level.) The published bound, 1/8 + c min(1, c), is looser.
    delta = 1 - omega where that is positive.

    Not linear. No state.

    Wire, 9 bits: d bytes of exponents (0: zero; else the value is 2^(byte - 127)), then ceil(d/8) bytes of signs
    (1 = negative), low bit first; padded to four bytes. 9 bits per element. Wire, 2 to 8 bits: ceil(d/block) norms N
    (fp32), then ceil(d bits/8) bytes of codes +-i + s (0 for i = 0, else N 2^(i-s)), element j in bits
    [j bits, (j+1) bits), low bit first; padded to four bytes. 4 bits and blocks of 512: 4.06 bits per element.

    The ends of the range, 9 bits: denormals (|x_j| < 2^-126) go to 0 or 2^-126, unbiased, with a variance of at most
    2^-126 |x_j|, which no multiple of x_j^2 bounds. What would round up to 2^128 is sent as 2^127, and its step counts
    as overflow. Fewer bits: blocks whose norm is below 2^-100 are sent as zero. Probabilities are multiples of 2^-16.

    Source: Horvath et al. 2019 (arXiv:1905.10988), sections 2 (compression) and 3 (dithering).

    Args:
        bits: 9, or 2 to 8.
        norm: inf or 2. With 9 bits there is none.
        block: elements that share a norm, a multiple of 16. With 9 bits there is none.
    """

    bits: int = 9
    norm: float = inf
    block: int = 512
    dense_below: int = 1024

    keeps_zeros = True
    tunable = "bits"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_integer(self.bits) or not 2 <= self.bits <= 9:
            raise ValueError(f"{self!r}: bits={self.bits!r} is not one of 2 to 9. Use Cast(bfloat16) for 16 bits.")
        if self.norm not in (2, inf):
            raise ValueError(f"{self!r}: norm={self.norm!r} is neither 2 nor inf.")
        check_block(repr(self), self.block)
        unused = [f.name for f in fields(self) if f.name in ("norm", "block") and getattr(self, f.name) != f.default]
        if self.bits == 9 and unused:
            raise ValueError(f"{self!r}: 9 bits hold whole exponents and need no {unused[0]}. Leave it out.")

    @property
    def alignment(self) -> int:
        return 16 if self.bits == 9 else self.block

    @property
    def unbiased(self) -> bool:
        return True

    def omega(self, numel: int) -> float | None:
        if self.bits == 9:
            return 0.125
        n, s = min(numel, self.block), 2 ** (self.bits - 1) - 1
        if n <= 1:
            return 0.0
        lowest = 2.0 ** (1 - s)
        above = 0.125 if s > 1 else 0.0
        if self.norm == inf:
            return max(above, (sqrt(1 + (n - 1) * lowest**2) - 1) / 2)
        c = lowest * sqrt(n)
        return above + 2 * c**2 / 9 if s > 1 and c <= 2.25 else c - 1

    def delta(self, numel: int) -> float | None:
        omega = self.omega(numel) or 0.0
        return 1.0 - omega if omega < 1.0 else None

    def section(self, numel: int) -> int:
        if self.bits == 9:
            return numel + -(-numel // 8)
        return 4 * -(-numel // self.block) + -(-numel * self.bits // 8)

    def encode_rows(self, i: Inputs, gain: Tensor, rng: Rng, hints: Mapping[str, Tensor], find: Find) -> None:
        if self.bits == 9:
            ops.natural_encode(*i, gain, rng.step, rng.rank)
        else:
            ops.natural_dither_encode(*i, gain, self.bits, self.norm == 2, self.block, rng.step, rng.rank)

    def decode_rows(
        self, wires: Tensor, table: Tensor, skip: Tensor, out: Tensor, scale: float, accumulate: bool, rng: Rng,
        find: Find,
    ) -> None:  # fmt: skip
        if self.bits == 9:
            ops.natural_decode(wires, table, skip, out, scale, accumulate)
        else:
            ops.natural_dither_decode(wires, table, skip, out, scale, accumulate, self.bits, self.block)
