"""Sketch: a random linear map to fewer numbers, and its transpose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, sqrt
from statistics import NormalDist

import torch
from torch import Tensor

from ..core.compressor import Compressor, ops
from ..core.random import Rng
from ..core.rows import Find, Inputs
from ..ops.work import on
from .randk import RandK
from .rotated import Rotated
from .topk import count, is_integer

KINDS = ("srht", "count", "gaussian")
_DRAWS = 1 << 28  # of a Gaussian matrix: some seconds


@dataclass(frozen=True, repr=False)
class Sketch(Compressor):
    """C(x) = R^T R x with a random R of s rows and d columns, E[R^T R] = 1; s = size or max(1, ceil(ratio * d)).

    Linear and unbiased; the wire holds R x, the same R on all ranks (no rank in its key) and another one at every step.
    So payloads can be summed by an all-reduce, and the variance does not average out over the ranks.

    - ``kind="srht"``: R = sqrt(d/s) P H D/sqrt n, s rows without replacement of a random Hadamard rotation:
      ``Rotated(RandK(unbiased=True), block)``. omega = d/s - 1 with equality; nothing is lost at s = d. Prefer it.
    - ``"count"``: each element is added with a random sign to one random of s sums (drawn from 31 bits).
      omega = (d - 1)/s with equality. One addition per element, but a cache miss each where s is large.
    - ``"gaussian"``: entries N(0, 1/s), from 65,536 quantiles of the normal distribution scaled to variance one; their
      kurtosis k is a little below 3, so omega = (d + k - 2)/s, at most (d + 1)/s. d*s products each way, for study:
      parameters of more than 2^28 products are refused.

    The error is spread over all of x: that of an element has the size of |x|/sqrt s. Wire, per parameter: s fp32
    numbers, 32 s/d bits per element. A parameter (srht: block) with a number of 2^64 or more is sent as zeros, flagged
    and stays in x. No state.

    Source: Charikar, Chen, Farach-Colton 2002 (count); Ailon, Chazelle 2006 and Tropp 2011 (arXiv:1011.1595) (srht);
    Song, Wang, Yu, Zhang 2022 (arXiv:2210.08371) for sketches in first-order methods. Theirs rotate a whole vector
    padded to a power of two; ours rotates in blocks and pads nothing.

    Args:
        size: s, the same for every parameter. ratio: s/d instead, in (0, 1].
        kind: "srht", "count" or "gaussian".
        block: of the rotation, for "srht"; a power of two.
        dense_below: parameters of fewer elements, and all 1-D ones, travel exact.
    """

    size: int | None = None
    ratio: float | None = None
    kind: str = "srht"
    block: int = 4096
    dense_below: int = 1024

    linear = True
    tunable = "ratio"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in KINDS:
            raise ValueError(f"{self!r}: kind={self.kind!r} is none of {', '.join(map(repr, KINDS))}.")
        if (self.size is None) == (self.ratio is None):
            raise ValueError(f"{self!r}: give either size (numbers per parameter) or ratio (their share, in (0, 1]).")
        number = isinstance(self.ratio, int | float) and not isinstance(self.ratio, bool)
        if self.ratio is not None and not (number and 0 < self.ratio <= 1):
            raise ValueError(f"{self!r}: ratio={self.ratio!r} is not in (0, 1]: numbers sent per element.")
        if self.size is not None and not (is_integer(self.size) and 1 <= self.size < 1 << 31):
            raise ValueError(f"{self!r}: size={self.size!r} is not a number of sums from 1 to 2^31 - 1.")
        try:
            Rotated(RandK(k=1), self.block)
        except ValueError as error:
            raise ValueError(f"{self!r}: {error}") from None

    @property
    def _rotated(self) -> Compressor:
        return _srht(self.size, self.ratio, self.block, self.dense_below)

    @property
    def alignment(self) -> int:
        return self.block if self.kind == "srht" else 1

    @property
    def unbiased(self) -> bool:
        return True

    def kept(self, numel: int) -> int:
        if self.size is not None and self.size > numel > 0:
            raise ValueError(
                f"{self!r}: size={self.size} exceeds a parameter of {numel} elements. Use ratio, or raise dense_below."
            )
        return count(repr(self), self.ratio, self.size, numel)

    def omega(self, numel: int) -> float | None:
        if not numel:
            return 0.0
        s = self.kept(numel)
        return {"srht": numel / s - 1.0, "count": (numel - 1) / s, "gaussian": (numel + 1) / s}[self.kind]

    def delta(self, numel: int) -> float | None:
        omega = self.omega(numel) or 0.0
        return 1.0 - omega if omega < 1.0 else None

    def gain(self, numel: int) -> float:
        return self._rotated.gain(numel) if self.kind == "srht" else 1.0

    def section(self, numel: int) -> int:
        s = self.kept(numel)
        if self.kind == "gaussian" and s * numel > _DRAWS:
            raise ValueError(
                f"{self!r}: {s} times {numel} normal numbers at every step, over the limit of {_DRAWS}. "
                f"Use kind='srht', which has less variance and takes {numel} additions times log2(block)."
            )
        return 4 * s

    def encode_rows(self, i: Inputs, gain: Tensor, rng: Rng, hints: Mapping[str, Tensor], find: Find) -> None:
        if self.kind == "srht":
            self._rotated.encode_rows(i, gain, rng, hints, find)
        elif self.kind == "count":
            ops.count_encode(*i, gain, rng.step)
        else:
            ops.gauss_encode(*i, gain, on(quantiles(), i.x.device), rng.step)

    def decode_rows(
        self, wires: Tensor, table: Tensor, skip: Tensor, out: Tensor, scale: float, accumulate: bool, rng: Rng,
        find: Find,
    ) -> None:  # fmt: skip
        if self.kind == "srht":
            self._rotated.decode_rows(wires, table, skip, out, scale, accumulate, rng, find)
        elif self.kind == "count":
            ops.count_decode(wires, table, skip, out, scale, accumulate, rng.step)
        else:
            ops.gauss_decode(wires, table, skip, out, scale, accumulate, on(quantiles(), out.device), rng.step)


@lru_cache(maxsize=256)
def _srht(size: int | None, ratio: float | None, block: int, dense_below: int) -> Compressor:
    return Rotated(RandK(ratio, size, True, dense_below), block)


@lru_cache(maxsize=1)
def quantiles() -> Tensor:
    """65,536 numbers of mean 0 and variance 1: the normal quantiles of (u + 1/2)/65536, fp32.

    They are rounded to multiples of 2^-14 first, so that the last bits of a machine's logarithm do not matter; their
    sum of squares is then a whole number.
    """
    normal = NormalDist()
    upper = [ceil(normal.inv_cdf((u + 0.5) / 65536) * 2**14 - 0.5) for u in range(1 << 15, 1 << 16)]
    scale = sqrt(2 * sum(q * q for q in upper) / 65536)
    return torch.tensor([-q / scale for q in reversed(upper)] + [q / scale for q in upper], dtype=torch.float32)
