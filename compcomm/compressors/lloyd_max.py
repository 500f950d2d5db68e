"""LloydMax: the best codebook for normally distributed numbers, at any number of bits."""

from __future__ import annotations

from dataclasses import dataclass

from .codebook import Codebook
from .gaussian import lloyd_max


@dataclass(frozen=True, repr=False)
class LloydMax(Codebook):
    """C(x) = S c per block of n: sigma = |x|_2/sqrt(n), c_j the level nearest to x_j/sigma among the 2^bits of the
    Lloyd-Max quantiser of N(0, 1). ``Rotated(LloydMax(bits))`` makes any input look normal: that is EDEN.

    scale="mse": S = <c,x>/|c|^2, the projection on c, so |x - C(x)|^2 = |x|^2 - |C(x)|^2 for every draw. A contraction
    for every input; ``delta`` bounds the squared cosine between c and x over all inputs (small: one element may hold
    everything), and on normal or rotated data it is 1 - D_b, D_b = 0.3634, 0.1175, 0.03455, 0.009501, 0.002505,
    6.44e-4, 1.63e-4, 4.12e-5 for 1 to 8 bits.
    scale="dot": S = |x|^2/<c,x>, so <x, C(x)> = |x|^2 for every draw. After a uniformly random rotation that is
    unbiased, with relative variance 1/(1 - D_b) - 1; a Hadamard rotation only comes near (x = e_i + e_j is a
    counter-example), and without rotation nothing is promised: declared biased, no contraction.

    Fractional bits f + p: in every block a cyclic window of h = round(p n) elements carries f + 1 bits, the others f
    (f = 0: none; they are sent as zero). All ranks and the decoder draw the window's start, so it costs no bytes, every
    element is in it with probability h/n, and the length is fixed. The loss is the mixture (h/n) D_{f+1} +
    (1 - h/n) D_f, D_0 = 1. Below one bit and with "mse", delta = 1/n: the window's energy is (h/n)|x|^2 in expectation
    and |C|^2 = |x_window|_1^2/h is no less than 1/h of that.

    Wire, per parameter: ceil(d/block) scales S (fp32); f bits per element, the rank of its level among 2^f, ascending
    (in the window: all but the last bit of its rank among 2^(f+1)), low bit first, ceil(d f/8) bytes; then per block
    ceil(h/8) bytes with those last bits in the window's order; padded to four bytes. 4 bits: 4.008 bits per element.
    Blocks without an element of 2**-100 or more are sent as zero. Biased, not linear. No state.

    Source: Max 1960, Lloyd 1982 (levels); Vargaftik et al. 2022 (EDEN, arXiv:2108.08842). Where we differ: blocks
    rather than whole vectors; fractional bits pick a random window where EDEN draws a mask, and below one bit where it
    subsamples, because a window keeps every length fixed and every code in its place.

    Args:
        bits: 1 to 8, or any fraction in (0, 8].
        scale: "mse" or "dot".
        block: elements that share a scale, a multiple of 16.
    """

    bits: float
    scale: str = "mse"
    block: int = 4096
    dense_below: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.bits, bool) or not isinstance(self.bits, int | float):
            raise ValueError(f"{self!r}: bits={self.bits!r} is not a number. Use 4, or 2.5 for something in between.")
        if not 2.0**-16 <= self.bits <= 8:
            raise ValueError(f"{self!r}: bits={self.bits!r} is outside (0, 8]. Use Cast(bfloat16) for 16 bits.")
        if self.scale not in ("mse", "dot"):
            raise ValueError(f"{self!r}: scale={self.scale!r} is neither 'mse' nor 'dot'.")

    @property
    def dot(self) -> bool:
        return self.scale == "dot"

    def half(self, bits: int) -> tuple[float, ...]:
        return lloyd_max(bits)
