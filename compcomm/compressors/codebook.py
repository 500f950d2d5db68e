"""Codebook: what quantisers with a fixed, symmetric set of levels share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from math import sqrt

import numpy as np
from torch import Tensor

from ..core.compressor import Compressor, ops
from ..core.random import Rng
from ..core.rows import Find, Inputs
from ..ops.reference.codebook import section
from .gaussian import as_tensor
from .qsgd import check_block


class Codebook(Compressor, abstract=True):
    """C(y) = S c, c_j the level nearest to y_j/sigma, sigma the block's root mean square. The wire is described in
    ``ops/reference/codebook.py``. A subclass has the fields ``bits`` and ``block`` and says which levels it uses."""

    bits: float
    block: int

    tunable = "bits"
    hint = "Use scale='mse', a contraction."

    def __post_init__(self) -> None:
        super().__post_init__()
        check_block(repr(self), self.block)

    @abstractmethod
    def half(self, bits: int) -> tuple[float, ...]:
        """The positive levels of the codebook of 2^bits, ascending, in units of sigma."""

    @property
    def dot(self) -> bool:
        """S = |y|^2/<c, y> instead of the projection <c, y>/|c|^2."""
        return False

    @property
    def width(self) -> tuple[int, int]:
        """Bits of every element, and how many 65536ths of them have one more."""
        return divmod(round(self.bits * 65536), 65536)

    @property
    def halves(self) -> tuple[tuple[float, ...], ...]:
        """The levels of both widths."""
        bits, part = self.width
        widths = [b for b, used in ((bits, bits > 0), (bits + 1, part > 0)) if used]
        return tuple(map(self.half, widths))

    @property
    def alignment(self) -> int:
        return self.block

    def delta(self, numel: int) -> float | None:
        n = max(1, min(numel, self.block))
        if self.dot:
            return None
        return 1.0 / n if self.bits < 1 else least_cosine(self.halves, n)

    def section(self, numel: int) -> int:
        return section(numel, *self.width, self.block)

    def encode_rows(self, i: Inputs, gain: Tensor, rng: Rng, hints: Mapping[str, Tensor], find: Find) -> None:
        ops.codebook_encode(*i, as_tensor(*self.halves), *self.width, self.dot, self.block, rng.step)

    def decode_rows(
        self, wires: Tensor, table: Tensor, skip: Tensor, out: Tensor, scale: float, accumulate: bool, rng: Rng,
        find: Find,
    ) -> None:  # fmt: skip
        levels = as_tensor(*self.halves)
        ops.codebook_decode(wires, table, skip, out, scale, accumulate, levels, *self.width, self.block, rng.step)


@lru_cache(maxsize=4096)
def least_cosine(halves: tuple[tuple[float, ...], ...], n: int) -> float:
    """A lower bound of cos^2(c, t) = <c,t>^2/(|c|^2 |t|^2) over all t of n elements with mean square 1.

    With means over the elements, P = E[ca], Q = E[c^2], a = |t|: P^2/Q >= 2 l P - l^2 Q for every l. Find m >= 0 and v
    with 2 l c a - l^2 c^2 >= m a^2 + v wherever c is the level of a; then P^2/Q >= m + v, since E[a^2] = 1. Inside a
    cell the difference is concave in a, and no a exceeds sqrt(n), so the ends of the cells decide; m + v is concave in
    (l, m), and any (l, m) gives a valid bound: two nested searches find a good one. By duality it is attained up to the
    grain of one element. One level: 1/n, the bound of scaled signs.
    """
    if n == 1:
        return 1.0
    ends: list[tuple[float, float]] = []
    for half in halves:
        edges = [0.0, *((a + b) / 2 for a, b in pairwise(half)), float("inf")]
        ends += [(c, min(a, sqrt(n))) for i, c in enumerate(half) if edges[i] < sqrt(n) for a in edges[i : i + 2]]
    c, a = np.array(ends).T
    product, level, square = 2 * c * a, c * c, a * a

    def over_m(slope: float) -> float:
        fixed = slope * product - slope * slope * level
        low, high = 0.0, 4 * slope * float(c.max())
        for _ in range(60):
            m = (low + high) / 2
            least = int((fixed - m * square).argmin())
            low, high = (m, high) if square[least] < 1 else (low, m)
        return low + float((fixed - low * square).min())

    low, high = 0.0, 1 / float(c.min())
    for _ in range(60):
        third = (high - low) / 3
        low, high = (low + third, high) if over_m(low + third) < over_m(high - third) else (low, high - third)
    return min(1.0, over_m((low + high) / 2))
