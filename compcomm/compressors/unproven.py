"""Unproven: a compressor that feedback schemes take as it is although it promises no contraction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.compressor import Compressor, Inputs
from ..core.layout import Segment
from ..core.random import Rng
from ..core.state import Slot

_TYPICAL = 1 << 20


@dataclass(frozen=True, repr=False)
class Unproven(Compressor):
    """C'(x) = C(x): C itself, biased and without delta, where a feedback scheme would refuse it. Biased; linear, sparse
    and exact where C is.

    Feedback around it is a heuristic: no theorem bounds its residual, as what is proven of schemes rests on a delta.
    ``Unproven(SignScale(scale="l2"))`` is what 1-bit Adam's published code runs (Tang et al. 2021, arXiv:2102.02888).
    It works on dense, homogeneous tensors: |x - C(x)|^2 = 2|x|^2 (1 - |x|_1/(sqrt(n) |x|)), 0.40 |x|^2 on Gaussian
    data, but more than |x|^2 where |x|_1 < sqrt(n)|x|/2, as on sparse ones.

    Wire, decoder and state are C's.
    """

    compressor: Compressor

    cure = "Use Unproven around the whole of it."

    def __post_init__(self) -> None:
        c = self.compressor
        if not isinstance(c, Compressor):
            raise ValueError(f"Unproven({c!r}): {c!r} is no compressor. Write the call.")
        if isinstance(c, Unproven):
            raise ValueError(f"{self!r}: once is enough. Use {c!r}.")
        if c.delta(_TYPICAL) is not None:
            raise ValueError(f"{self!r}: {c!r} is a contraction, so feedback takes it as it is. Use {c!r}.")
        if c.unbiased:
            raise ValueError(
                f"{self!r}: {c!r} is unbiased, and shrinking makes it a contraction. Use Contractive({c!r})."
            )

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
    def selective(self) -> bool:  # type: ignore[override]
        return self.compressor.selective

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

    def section(self, numel: int) -> int:
        return self.compressor.section(numel)

    def kept(self, numel: int) -> int:
        return self.compressor.kept(numel)

    def gain(self, numel: int) -> float:
        return self.compressor.gain(numel)

    def slots(self, segment: Segment) -> Mapping[str, Slot]:
        return self.compressor.slots(segment)

    def contractive(self, scheme: str = "ErrorFeedback") -> Compressor:
        """Itself, unproven as it is."""
        return self

    def encode_rows(self, i: Inputs, gain: Tensor, rng: Rng, hints: Mapping[str, Tensor]) -> None:
        self.compressor.encode_rows(i, gain, rng, hints)

    def decode_rows(
        self, wires: Tensor, table: Tensor, skip: Tensor, out: Tensor, scale: float, accumulate: bool, rng: Rng
    ) -> None:
        self.compressor.decode_rows(wires, table, skip, out, scale, accumulate, rng)

    def zero_rows(self, wire: Tensor, table: Tensor, out: Tensor, rng: Rng) -> None:
        self.compressor.zero_rows(wire, table, out, rng)

    def undeal_rows(self, wire: Tensor, table: Tensor, deals: Tensor, out: Tensor, scale: float, grain: int) -> None:
        self.compressor.undeal_rows(wire, table, deals, out, scale, grain)
