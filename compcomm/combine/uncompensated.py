"""Uncompensated: no feedback, said aloud. The yardstick that feedback is measured against."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.compressor import Compressor
from ..core.reducer import Reducer
from ..routes.powersgd import PowerSGD
from .wrapper import Wrapper


@dataclass(frozen=True, repr=False)
class Uncompensated(Wrapper):
    """send c = C(g), and forget g - c;  out = mean of c over the ranks.

    What the wrapped reducer does by itself, under a name that says so in a table of results. Right for unbiased
    compressors. With a biased one the errors add up: Top-1 diverges on three quadratics, however small the step is.

    Learning rate: no memory, nothing to rescale. State, bytes and delta are the wrapped reducer's own.

    Source: the counterexample is Beznosikov et al. 2020 (arXiv:2002.12410), Example 1.
    """

    reducer: Reducer | Compressor

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.reducer, PowerSGD) or getattr(self.reducer, "owner", None) is not None:
            raise ValueError(f"Uncompensated({self.reducer!r}): it has feedback. Use {self.reducer!r} as it is.")

    def contractive(self, scheme: str) -> Reducer:
        return Reducer.contractive(self, scheme)

    def _feedback_hint(self, scheme: str) -> str:
        return f"It is to have none. Use {scheme}({self.reducer!r})."
