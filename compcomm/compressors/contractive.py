"""Contractive: an unbiased compressor, shrunk so that error feedback may use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.compressor import Compressor, Inputs
from ..core.layout import Segment
from ..core.random import Rng
from ..core.state import Slot


@dataclass(frozen=True, repr=False)
class Contractive(Compressor):
    """C'(x) = C(x)/(1 + omega): if C is unbiased with variance omega, C' has delta = 1/(1 + omega).

    The sender shrinks the scale that it writes, so the wire and the decoder are C's own. Biased; linear, sparse and
    exact where C is. Without it, plain feedback around random rounding may grow its residual without bound.

    Source: Beznosikov et al. 2020 (arXiv:2002.12410), the scaling of unbiased operators into the contractive class.
    """

    compressor: Compressor

    def __post_init__(self) -> None:
        if not isinstance(self.compressor, Compressor) or not self.compressor.unbiased:
            raise ValueError(f"Contractive({self.compressor!r}): only an unbiased compressor is made a contraction so.")

    @property
    def linear(self) -> bool:  # type: ignore[override]
        return self.compressor.linear

    @property
    def sparse(self) -> bool:  # type: ignore[override]
        return self.compressor.sparse

    @property
    def variable(self) -> bool:  # type: ignore[override]
        return self.compressor.variable

    @property
    def keeps_zeros(self) -> bool:  # type: ignore[override]
        return self.compressor.keeps_zeros

    @property
    def grain(self) -> int:
        return self.compressor.grain

    @property
    def dtype(self) -> torch.dtype:
        return self.compressor.dtype

    def exact(self, segment: Segment) -> bool:
        return self.compressor.exact(segment)

    def delta(self, numel: int) -> float | None:
        return 1.0 / (1.0 + (self.compressor.omega(numel) or 0.0))

    def section(self, numel: int) -> int:
        return self.compressor.section(numel)

    def kept(self, numel: int) -> int:
        return self.compressor.kept(numel)

    def gain(self, numel: int) -> float:
        return self.compressor.gain(numel) / (1.0 + (self.compressor.omega(numel) or 0.0))

    def slots(self, segment: Segment) -> Mapping[str, Slot]:
        return self.compressor.slots(segment)

    def encode_rows(self, i: Inputs, gain: Tensor, rng: Rng, hints: Mapping[str, Tensor]) -> None:
        self.compressor.encode_rows(i, gain, rng, hints)

    def decode_rows(
        self, wires: Tensor, table: Tensor, skip: Tensor, out: Tensor, scale: float, accumulate: bool, rng: Rng
    ) -> None:
        self.compressor.decode_rows(wires, table, skip, out, scale, accumulate, rng)

    def zero_rows(self, wire: Tensor, table: Tensor, out: Tensor, rng: Rng) -> None:
        self.compressor.zero_rows(wire, table, out, rng)
