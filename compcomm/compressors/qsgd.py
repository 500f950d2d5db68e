"""QSGD: uniform levels under a norm per block, packed to 2..8 bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, inf, log2, sqrt

from torch import Tensor

from ..core.compressor import Compressor, ops
from ..core.random import Rng
from ..core.rows import Find, Inputs, Received, Uniform
from .topk import is_integer


@dataclass(frozen=True, repr=False)
class QSGD(Compressor):
    """C(x)_j = (N/s) q_j with q_j = round(s x_j / N), N the block's norm, s levels on either side of zero.

    ``rounding="stochastic"`` (default) rounds down or up at random so that E q_j is exact: unbiased,
    with exact variance (N/s)^2 sum u_j (1 - u_j), u = frac(s |x|/N). Bounds for blocks of n elements:
    norm=2: omega = min(n/s^2, sqrt(n)/s). norm=inf: omega = (1 - 2t)/(2t) at t = (sqrt(s^4 + (n-1) s^2) - s^2)/(n-1)
    (one element at the norm, all others at t levels; 1.19 for 4 bits and blocks of 512).

    ``rounding="nearest"``: no error exceeds half a level nor the element itself, so with norm=inf it is a contraction
    with delta = 4 s^2/(4 s^2 + n - 1) (all others at half a level), draws no random numbers and suits error feedback.

    Wire, per parameter: ceil(d/block) steps N/s (fp32), then ceil(d bits/8) bytes of codes q + s, element j in bits
    [j bits, (j+1) bits), low bit first; padded to four bytes. 4 bits and blocks of 512: 4.06 bits per element.
    Blocks whose norm is below 2**-100 are sent as zero. Not linear. No state.

    ``coding="elias"``: the same levels in a section of variable length, for links where bytes matter more than time:
    per block the shortest of sparse (omega codes of gaps and levels), dense (omega codes of all levels) and fixed
    codes, so at most 4 + ceil(d/(4 block)) bytes more than ``coding="fixed"``. Decoded numbers are those of "fixed" to
    the bit. It pays where most levels are small: on Gaussian data 4 bits under the L2 norm take 1.55 bits per element
    (fixed: 4.06) and 22 levels 2.79 (6.06), but 4 bits under the max norm 4.01. Wire:
    ``compcomm/ops/reference/elias.py``. RuntimeError where a peer's stream is corrupt.

    Source: Alistarh et al. 2017 (arXiv:1610.02132), section 3.1; the max norm and nearest rounding are the common
    variants. Dithers have 16 bits. Omega codes: Elias 1975.

    Args:
        bits: 2 to 8 bits per element, s = 2**(bits-1) - 1; one bit holds only a sign: ``SignScale``.
        levels: s instead of bits, 1 to 127.
        norm: inf or 2.
        block: elements that share a norm, a multiple of 16; a block never straddles two parameters.
        coding: "fixed" (codes of fixed width) or "elias".
    """

    bits: int | None = None
    levels: int | None = None
    norm: float = inf
    rounding: str = "stochastic"
    block: int = 512
    dense_below: int = 1024
    coding: str = "fixed"

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.bits is None) == (self.levels is None):
            raise ValueError(f"{self!r}: give either bits (2 to 8) or levels (1 to 127).")
        if not is_integer(self.bits if self.levels is None else self.levels):
            raise ValueError(f"{self!r}: bits and levels are whole numbers.")
        if self.bits == 1:
            raise ValueError(f"{self!r}: bits=1 holds only a sign, and zero is a level here. Use SignScale().")
        if self.bits is not None and not 2 <= self.bits <= 8:
            raise ValueError(f"{self!r}: bits={self.bits} is outside 2 to 8. Use Cast(bfloat16) for 16 bits.")
        if self.levels is not None and not 1 <= self.levels <= 127:
            raise ValueError(f"{self!r}: levels={self.levels} is outside 1 to 127 (8 bits with the sign).")
        if self.norm not in (2, inf):
            raise ValueError(f"{self!r}: norm={self.norm!r} is neither 2 nor inf.")
        if self.rounding not in ("stochastic", "nearest"):
            raise ValueError(f"{self!r}: rounding={self.rounding!r} is neither 'stochastic' nor 'nearest'.")
        if self.coding not in ("fixed", "elias"):
            raise ValueError(f"{self!r}: coding={self.coding!r} is neither 'fixed' nor 'elias'.")
        check_block(repr(self), self.block)

    @property
    def variable(self) -> bool:  # type: ignore[override]
        return self.coding == "elias"

    @property
    def width(self) -> int:
        """Bits per code."""
        return self.bits or 1 + ceil(log2(self.s + 1))

    @property
    def s(self) -> int:
        """Levels on either side of zero."""
        return self.levels or 2 ** ((self.bits or 2) - 1) - 1

    @property
    def alignment(self) -> int:
        return self.block

    @property
    def uniform(self) -> Uniform | None:
        return None if self.variable else Uniform(self.s, self.block, self.norm == 2, self.unbiased)

    @property
    def unbiased(self) -> bool:
        return self.rounding == "stochastic"

    def omega(self, numel: int) -> float | None:
        if not self.unbiased:
            return None
        n, s = min(numel, self.block), self.s
        if n <= 1:
            return 0.0
        if self.norm == 2:
            return min(n / s**2, sqrt(n) / s)
        t = (sqrt(s**4 + (n - 1) * s**2) - s**2) / (n - 1)
        return (1 - 2 * t) / (2 * t)

    def delta(self, numel: int) -> float | None:
        omega = self.omega(numel)
        if omega is not None:
            return 1.0 - omega if omega < 1.0 else None
        n, s = min(max(numel, 1), self.block), self.s
        return None if self.norm == 2 else 4 * s**2 / (4 * s**2 + n - 1)

    keeps_zeros = True
    tunable = "bits"
    hint = "Use rounding='nearest' with norm=inf, a contraction."

    def section(self, numel: int) -> int:
        blocks = -(-numel // self.block)
        forms = 4 + -(-blocks // 4) if self.variable else 0
        return forms + 4 * blocks + -(-numel * self.width // 8)

    def encode_rows(self, i: Inputs, gain: Tensor, rng: Rng, hints: Mapping[str, Tensor], find: Find) -> None:
        encode = ops.elias_encode if self.variable else ops.qsgd_encode
        encode(*i, gain, self.width, self.s, self.norm == 2, self.unbiased, self.block, rng.step, rng.rank)

    @property
    def reencodes(self) -> bool:
        return not self.variable

    def reencode_rows(self, i: Inputs, received: Received, gain: Tensor, rng: Rng) -> None:
        x, scales = (None, i.decay) if i.add is None else (i.x, i.add_scale)
        wires, table, skip, scale = received
        tail = (self.width, self.s, self.norm == 2, self.unbiased, self.block, rng.step, rng.rank)
        ops.qsgd_reencode(x, wires, table, skip, i.wire, i.table, i.status, scale, scales, gain, *tail)

    def decode_rows(
        self, wires: Tensor, table: Tensor, skip: Tensor, out: Tensor, scale: float, accumulate: bool, rng: Rng,
        find: Find,
    ) -> None:  # fmt: skip
        decode = ops.elias_decode if self.variable else ops.qsgd_decode
        decode(wires, table, skip, out, scale, accumulate, self.width, self.s, self.block)


def check_block(call: str, block: int) -> None:
    """Blocks are multiples of 16 elements: the lanes of the fixed sum, and whole bytes of codes."""
    if not is_integer(block) or block < 16 or block % 16:
        raise ValueError(f"{call}: block={block} is not a positive multiple of 16.")
