"""RandK: k elements at random, the same on every rank, so no index crosses the wire."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..core.compressor import Compressor, ops
from ..core.random import Rng
from ..core.rows import Find, Inputs
from .topk import check_density, count


@dataclass(frozen=True, repr=False)
class RandK(Compressor):
    """C(x) = x on a uniform random set of k = max(1, ceil(ratio * d)) elements, 0 elsewhere; unbiased form (d/k) C(x).

    Biased form (default, the one for error feedback): delta = k/d, with equality in expectation. Unbiased form:
    omega = d/k - 1, with equality. Linear: all ranks draw the same set, so payloads can be summed by an all-reduce
    and the volume does not grow with the number of ranks; the price is that the variance does not average out.

    Wire, per parameter: k fp32 values and no index: 32 bits per kept element. The set is the image of 0..k-1 under a
    keyed permutation (a Feistel network with cycle walking, key from seed and name, tweaked by the step), so drawing it
    costs O(k). No state.

    Source: Stich, Cordonnier, Jaggi 2018 (arXiv:1809.07599), Definition 2.1 and the remarks on rand-k.
    """

    ratio: float | None = None
    k: int | None = None
    unbiased: bool = False  # type: ignore[assignment]
    dense_below: int = 1024

    linear = True
    sparse = True
    keeps_zeros = True
    tunable = "ratio"
    per_row_k = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_density(repr(self), self.ratio, self.k)
        if not isinstance(self.unbiased, bool):
            raise ValueError(f"{self!r}: unbiased={self.unbiased!r} is neither True nor False.")

    def delta(self, numel: int) -> float | None:
        if not self.unbiased:
            return self.kept(numel) / numel if numel else 1.0
        omega = self.omega(numel) or 0.0
        return 1.0 - omega if omega < 1.0 else None

    def omega(self, numel: int) -> float | None:
        return (numel / self.kept(numel) - 1.0 if numel else 0.0) if self.unbiased else None

    def kept(self, numel: int) -> int:
        return count(repr(self), self.ratio, self.k, numel)

    def gain(self, numel: int) -> float:
        return numel / self.kept(numel) if self.unbiased and numel else 1.0

    def section(self, numel: int) -> int:
        return 4 * self.kept(numel)

    def encode_rows(self, i: Inputs, gain: Tensor, rng: Rng, hints: Mapping[str, Tensor], find: Find) -> None:
        ops.randk_encode(*i, gain, rng.step)

    def decode_rows(
        self, wires: Tensor, table: Tensor, skip: Tensor, out: Tensor, scale: float, accumulate: bool, rng: Rng,
        find: Find,
    ) -> None:  # fmt: skip
        ops.randk_decode(wires, table, skip, out, scale, accumulate, rng.step)

    def zero_rows(self, wire: Tensor, table: Tensor, out: Tensor, rng: Rng, find: Find) -> None:
        for at, _, numel, _, offset, key, k, _ in table.tolist():
            if at >= 0:
                out[at : at + numel][ops.randk_indices(key, numel, k, offset, rng.step).to(out.device)] = 0
