"""GlobalTopK: one threshold over all layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..combine.setting import owner, setting, tuned
from ..compressors.topk import TopK
from ..core.compressor import Compressor
from ..core.reducer import Reducer
from .controller import Controller
from .telemetry import Table, Telemetry

Curve = tuple[Table, Table]
FLOOR = 1e-300
"""The mean square of elements that are all zero: its logarithm is finite."""


@dataclass(frozen=True, repr=False)
class GlobalTopK(Controller):
    """Each layer's density is the share of its elements among the k = ceil(density * d) largest of the gathered
    gradient of all d coded elements: the selection of least squared error for that many. No layer has less than one
    element. It may starve layers of small gradients, which L-GreCo (L2 norms, not squared) does less.

    What is known of a layer are its tails: E_j, the squared error of its k_j largest elements. From the k_i-th to the
    k_j-th they have the mean square (E_i - E_j)/(k_j - k_i), which is the square of the sqrt(k_i k_j)-th or so. So a
    threshold's count is read off a curve through these points, straight on logarithmic scales; the threshold that all
    layers share is found by bisection. Against sorting the whole model, up to a density of 0.1: the count within 1 %,
    the squared error within 5 % (``tests/adaptive/test_rivals.py``).

    Args:
        reducer: ``TopK`` with a ratio, with any route and feedback around it; its own ratio is that of the model.
        every, window: steps between decisions and steps whose gradients are gathered; see ``Controller``.

    Tails are taken at 1/256, 1/64, 1/16, 1/4, 1, 2, 4, ... times the given density. State and timing: see
    ``Controller``. Source: one selection for the whole gradient is that of Aji and Heafield 2017 (arXiv:1704.05021,
    beside one for each layer); reading it off the layers' tails is ours.
    """

    reducer: Reducer | Compressor
    every: int = 200
    window: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(owner(self.reducer), TopK):
            raise ValueError(
                f"GlobalTopK({self.reducer!r}): a threshold over all layers needs magnitudes. Use TopK(ratio=0.01)."
            )
        super().__post_init__()

    @property
    def candidates(self) -> tuple[float, ...]:
        own = setting("GlobalTopK", self.reducer)
        factors = [4.0**k for k in range(-4, 0)]
        while own * 2 * max(1.0, factors[-1]) < 1.0:
            factors.append(2 * max(1.0, factors[-1]))
        return tuple(own * factor for factor in factors)

    def decide(self, t: Telemetry) -> Sequence[float] | None:
        if not (np.isfinite(t.norms).all() and np.isfinite(t.errors).all() and t.norms.any()):
            return None
        forms = [tuned(owner(self.reducer), value) for value in t.settings]
        tails = [
            _tail([form.kept(n) for form in forms], n, t.norms[i], t.errors[i]) for i, n in enumerate(t.numel.tolist())
        ]
        wanted = max(len(tails), float(np.ceil(setting("GlobalTopK", self.reducer) * t.numel.sum())))
        low, high = np.log(FLOOR) - 1, max(squares[-1] for squares, _ in tails) + 1
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (middle, high) if _kept(middle, tails).sum() > wanted else (low, middle)
        most, least = _kept(low, tails), _kept(high, tails)  # they differ where many elements are equal
        part = (wanted - least.sum()) / max(1.0, most.sum() - least.sum())
        counts = np.rint(least + np.clip(part, 0.0, 1.0) * (most - least))
        return [float(f"{(k - 0.5) / n:.3g}") for k, n in zip(counts, t.numel, strict=True)]


def _tail(counts: list[int], numel: int, norm: float, errors: Table) -> Curve:
    """(log of the square, log of the count), squares ascending, of the elements of a layer that are not zero.

    Those between the last two counts are taken to fall to zero on a line: a share s of them is below s times the
    largest, whose square is three times their mean square.
    """
    edges, first = np.unique([0, *counts, numel], return_index=True)
    energies = np.square([norm, *errors, 0.0])[first]
    support = max(1, int(np.argmin(energies > 0)))  # all further elements are zero
    edges, energies = edges[: support + 1], energies[: support + 1]
    squares = np.minimum.accumulate(np.maximum((energies[:-1] - energies[1:]) / np.diff(edges), FLOOR))
    centres = np.sqrt(np.maximum(edges[:-1], edges[1:] / 9) * edges[1:])  # a third of the first count
    shares = np.array([0.5, 0.25, 0.125, 1 / 32, 1 / 1024])
    last = np.maximum(3 * np.square(shares) * squares[-1], FLOOR)
    beyond = edges[-1] - shares * (edges[-1] - edges[-2])
    beyond[-1] = edges[-1]
    at = np.concatenate((np.maximum(centres[:-1], 1.0), beyond))
    return np.log(np.concatenate((squares[:-1], last)))[::-1], np.log(at)[::-1]


def _kept(threshold: float, tails: Sequence[Curve]) -> Table:
    """How many elements of each layer are above, at least one."""
    return np.maximum(1.0, np.exp([np.interp(threshold, *tail) for tail in tails]))
