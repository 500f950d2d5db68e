"""GlobalTopK: one threshold over all layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..compressor import Compressor
from ..reducer import Reducer
from .controller import Controller
from .knob import owner, setting
from .telemetry import Table, Telemetry


@dataclass(frozen=True, repr=False)
class GlobalTopK(Controller):
    """Each layer's density is the share of its elements among the k = density * d largest of the whole model's
    gathered gradient: the selection of least squared error for that many elements. It may starve layers of small
    gradients, which L-GreCo (L2 norms, not squared) does less.

    What is known of a layer are its tails: with E(r) the squared error at density r, the elements between two densities
    have the mean square (E(r1) - E(r2)) / ((r2 - r1) d). These mean squares, on logarithmic scales, say for a threshold
    what density a layer has; the threshold is found by bisection. No layer has less than one element.

    Args:
        reducer: ``TopK`` with a ratio, with any route and feedback around it.
        every, window: see ``Controller``; its tails are taken at densities of 1/256 to 256 times the given one.

    State and timing: see ``Controller``. Source: the global selection is common (Strom 2015; Shi et al. 2019,
    arXiv:1901.04359); reading it off the layers' tails is ours.
    """

    reducer: Reducer | Compressor
    every: int = 200
    window: int | None = None

    def __post_init__(self) -> None:
        if not getattr(owner(self.reducer), "selective", False):
            raise ValueError(
                f"GlobalTopK({self.reducer!r}): a threshold over all layers needs magnitudes. Use TopK(ratio=0.01)."
            )
        super().__post_init__()

    @property
    def candidates(self) -> tuple[float, ...]:
        own = setting("GlobalTopK", self.reducer)
        return tuple(own * 4.0**k for k in range(-4, 5) if own * 4.0**k < 1.0)

    def decide(self, t: Telemetry) -> Sequence[float]:
        if not (np.isfinite(t.norms).all() and t.norms.any()):
            return [t.settings[i] for i in t.current]
        tails = [_tail(t, i) for i in range(len(t.names))]
        wanted = setting("GlobalTopK", self.reducer) * float(t.numel.sum())
        low, high = min(x[0] for x, _ in tails), max(x[-1] for x, _ in tails)
        for _ in range(60):
            middle = (low + high) / 2
            kept = sum(n * _density(middle, tail) for n, tail in zip(t.numel, tails, strict=True))
            low, high = (middle, high) if kept > wanted else (low, middle)
        least = 1.0 / t.numel
        return [
            min(1.0, max(float(e), float(f"{_density(high, tail):.3g}"))) for e, tail in zip(least, tails, strict=True)
        ]


def _tail(t: Telemetry, layer: int) -> tuple[Table, Table]:
    """(log of the mean square, log of the density) between neighbouring settings, mean squares ascending."""
    edges = np.array([0.0, *t.settings])
    energies = np.square(np.array([t.norms[layer], *t.errors[layer]]))
    squares = np.maximum((energies[:-1] - energies[1:]) / (np.diff(edges) * t.numel[layer]), 1e-300)
    centres = np.sqrt(np.maximum(edges[:-1], edges[1] / 4) * edges[1:])
    return np.log(np.minimum.accumulate(squares))[::-1], np.log(centres)[::-1]


def _density(threshold: float, tail: tuple[Table, Table]) -> float:
    return float(np.exp(np.interp(threshold, *tail)))
