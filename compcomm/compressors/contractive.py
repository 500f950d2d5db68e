"""Contractive: an unbiased compressor, shrunk so that error feedback may use it."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.compressor import Compressor
from .wrapper import CompressorWrapper


@dataclass(frozen=True, repr=False)
class Contractive(CompressorWrapper):
    """C'(x) = C(x)/(1 + omega): if C is unbiased with variance omega, C' has delta = 1/(1 + omega).

    The sender shrinks the scale that it writes, so the wire and the decoder are C's own. Biased; linear, sparse and
    exact where C is. Without it, plain feedback around random rounding may grow its residual without bound.

    Source: Beznosikov et al. 2020 (arXiv:2002.12410), the scaling of unbiased operators into the contractive class.
    """

    def __post_init__(self) -> None:
        if not isinstance(self.compressor, Compressor) or not self.compressor.unbiased:
            raise ValueError(f"Contractive({self.compressor!r}): only an unbiased compressor is made a contraction so.")

    def delta(self, numel: int) -> float | None:
        return 1.0 / (1.0 + (self.compressor.omega(numel) or 0.0))

    def gain(self, numel: int) -> float:
        return self.compressor.gain(numel) / (1.0 + (self.compressor.omega(numel) or 0.0))


_TYPICAL = 1 << 20


def contractive(c: Compressor, scheme: str = "ErrorFeedback") -> Compressor:
    """``c`` as the feedback scheme of that name needs it: itself if a contraction, shrunk if unbiased; else an
    error."""
    if c.delta(_TYPICAL) is not None or getattr(c, "unproven", False):
        return c
    if c.unbiased:
        return Contractive(c)
    raise ValueError(
        f"{scheme}({c!r}): {c!r} is no contraction: it promises no delta with E|x - C(x)|^2 <= (1 - delta)|x|^2, so "
        f"its residual may grow without bound. {c.hint} Or say that you take it without proof: "
        f"{scheme}(Unproven({c!r}))."
    )
