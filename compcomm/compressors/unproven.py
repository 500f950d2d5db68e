"""Unproven: a compressor that feedback schemes take as it is although it promises no contraction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .wrapper import CompressorWrapper

_TYPICAL = 1 << 20


@dataclass(frozen=True, repr=False)
class Unproven(CompressorWrapper):
    """C'(x) = C(x): C itself, biased and without delta, where a feedback scheme would refuse it. Biased; linear, sparse
    and exact where C is.

    Feedback around it is a heuristic: no theorem bounds its residual, as what is proven of schemes rests on a delta.
    ``Unproven(SignScale(scale="l2"))`` is what 1-bit Adam's published code runs (Tang et al. 2021, arXiv:2102.02888).
    It works on dense, homogeneous tensors: |x - C(x)|^2 = 2|x|^2 (1 - |x|_1/(sqrt(n) |x|)), 0.40 |x|^2 on Gaussian
    data, but more than |x|^2 where |x|_1 < sqrt(n)|x|/2, as on sparse ones.

    Wire, decoder and state are C's.
    """

    unproven = True
    hint = "Use Unproven around the whole of it."

    def __post_init__(self) -> None:
        super().__post_init__()
        c = self.compressor
        if isinstance(c, Unproven):
            raise ValueError(f"{self!r}: once is enough. Use {c!r}.")
        if c.delta(_TYPICAL) is not None:
            raise ValueError(f"{self!r}: {c!r} is a contraction, so feedback takes it as it is. Use {c!r}.")
        if c.unbiased:
            raise ValueError(
                f"{self!r}: {c!r} is unbiased, and shrinking makes it a contraction. Use Contractive({c!r})."
            )

    @property
    def sends_values(self) -> bool:
        """See ``core.compressor``."""
        return getattr(self.compressor, "sends_values", False)

    def scatter_rows(self, *args: Any) -> None:
        """See ``core.compressor``."""
        self.compressor.scatter_rows(*args)  # type: ignore[attr-defined]
