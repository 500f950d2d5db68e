"""TopK: the k elements of largest magnitude, exactly or by a sampled threshold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

from torch import Tensor

from ..core.compressor import ops
from ..core.layout import Segment
from ..core.random import Rng
from ..core.rows import Find, Inputs
from ..core.state import Merge, Slot
from .selection import Selection


def is_integer(value: object) -> bool:
    """Whether it is an int and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_density(call: str, ratio: float | None, k: int | None) -> None:
    """Exactly one of ratio in (0, 1] and k >= 1."""
    if (ratio is None) == (k is None):
        raise ValueError(f"{call}: give either ratio (a density in (0, 1]) or k (elements per parameter).")
    number = isinstance(ratio, int | float) and not isinstance(ratio, bool)
    if ratio is not None and not (number and 0 < ratio <= 1):
        raise ValueError(f"{call}: ratio={ratio!r} is not in (0, 1]: it is the share of the elements that is sent.")
    if k is not None and (not is_integer(k) or k < 1):
        raise ValueError(f"{call}: k={k!r} is not a positive number of elements.")


def count(call: str, ratio: float | None, k: int | None, numel: int) -> int:
    """k = ceil(ratio * numel), at least 1 (0 of 0); the ratio is taken as the decimal number that it was written as."""
    if k is not None and k > numel > 0:
        raise ValueError(f"{call}: k={k} exceeds a parameter of {numel} elements. Use ratio, or raise dense_below.")
    return min(numel, k if k is not None else max(1, ceil(Fraction(repr(ratio)) * numel)))


@dataclass(frozen=True, repr=False)
class TopK(Selection):
    """C(x) keeps the k = max(1, ceil(ratio * d)) elements of largest |x_j| of each parameter, lowest index on ties.

    delta = k/d, and |x - C(x)|^2 = |x|^2 - |C(x)|^2 always. Biased, not linear, positively homogeneous.

    Wire, per parameter of d elements: ceil(d/65536) counts (u32), k offsets inside their block of 65,536 (u16,
    ascending), padding to four bytes, k values (fp32): 48 bits per kept element. Decoders take k as a capacity: counts
    may sum to less, and what is left over is zero bytes.

    State: the hint "threshold", last step's k-th magnitude, a first guess that the count verifies (the result never
    depends on it). Source: Aji and Heafield 2017 (arXiv:1704.05021); exact selection and lowest-index ties are ours.

    ``select="sampled"``: the threshold is read off a strided sample of about 1 % (Lin, Han, Mao, Wang, Dally 2018,
    arXiv:1712.01887, the selection of their program; the rule to the bit is in ``ops/reference/sampled``). It sends the
    s largest, 0.8 k <= s <= k, so delta = ceil(0.8 k)/d for every input; k is the capacity on the wire, and no state is
    kept. Theirs cuts what exceeds k off by index; ours takes the k largest instead. On a CPU the exact selection, which
    also begins with a sample, is the faster one; this one is for reproducing theirs. Not homogeneous to the bit.

    Args:
        ratio: density in (0, 1], per parameter.
        k: kept elements per parameter, instead of ``ratio``.
        dense_below: parameters of fewer elements, and all 1-D ones, travel exact.
        select: "exact", or "sampled".
    """

    ratio: float | None = None
    k: int | None = None
    dense_below: int = 1024
    select: str = "exact"

    tunable = "ratio"
    per_row_k = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_density(repr(self), self.ratio, self.k)
        if self.select not in ("exact", "sampled"):
            raise ValueError(f"{self!r}: select={self.select!r} is no selection. Choose 'exact' or 'sampled'.")

    def delta(self, numel: int) -> float | None:
        k = self.kept(numel)
        least = k if self.select == "exact" else -(-4 * k // 5)
        return least / numel if numel else 1.0

    def kept(self, numel: int) -> int:
        return count(repr(self), self.ratio, self.k, numel)

    def slots(self, segment: Segment) -> Mapping[str, Slot]:
        return {"threshold": Slot(Merge.DROP, numel=1)} if self.select == "exact" else {}

    def encode_rows(self, i: Inputs, gain: Tensor, rng: Rng, hints: Mapping[str, Tensor], find: Find) -> None:
        if self.select == "exact":
            ops.topk_encode(*i, hints.get("threshold"))
        else:
            ops.topk_sampled_encode(*i, rng.step, rng.rank)
