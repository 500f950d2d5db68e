"""LAMB's trust ratios: a few numbers per parameter, from norms that all ranks know to the bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.state import StateError


@dataclass(frozen=True)
class Bounds:
    """What a ratio's factor is held to after the warm-up: its limits, and how far it moves in a step, as a part."""

    low: float
    high: float
    threshold: float


class Trust:
    """``mean[n]``: running mean of parameter n's ratio (0: there was none yet). ``factor[n]``: what the mean is
    multiplied by after the warm-up. ``last[n]``: the ratio of the last step."""

    def __init__(self, count: int, beta: float, bounds: Bounds) -> None:
        self.beta, self.bounds = beta, bounds
        self.mean, self.factor, self.last = [0.0] * count, [1.0] * count, [1.0] * count

    def measure(self, n: int, weight: float, update: float, limits: tuple[float, float]) -> float:
        """c = ``weight`` / ``update``, two norms, within ``limits``; 1 where one of them is zero. Where c is not 1,
        mean <- beta mean + (1 - beta) c; the first c is taken whole."""
        low, high = limits
        c = min(max(weight / update, low), high) if weight and update else 1.0
        if c != 1.0:
            self.mean[n] = self.beta * self.mean[n] + (1.0 - self.beta) * c if self.mean[n] else c
        self.last[n] = c
        return c

    def end(self) -> None:
        """The warm-up ends: a mean that was never measured is 1."""
        self.mean = [mean or 1.0 for mean in self.mean]

    def correct(self, n: int, factor: float, share: float) -> float:
        """c = mean * phi, phi = ``factor * share + 1 - share`` within the bounds, and near the phi before it."""
        bounds, last = self.bounds, self.factor[n]
        factor = min(max(factor * share + (1.0 - share), bounds.low), bounds.high)
        factor = min(max(factor, last * (1.0 - bounds.threshold)), last * (1.0 + bounds.threshold))
        self.factor[n] = factor
        self.last[n] = self.mean[n] * factor
        return self.last[n]

    def state_dict(self) -> dict[str, list[float]]:
        return {"mean": list(self.mean), "factor": list(self.factor)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes what ``state_dict`` returned, of as many parameters or of the first of them."""
        more = len(self.last) - len(state["mean"])
        self.mean, self.factor = [*state["mean"], *[0.0] * more], [*state["factor"], *[1.0] * more]


def check_numbers(name: str, values: object, count: int) -> None:
    """Raises StateError for what is no list of a number for every parameter."""
    if (
        not isinstance(values, Sequence)
        or len(values) != count
        or not all(isinstance(x, float) and 0.0 <= x < float("inf") for x in values)
    ):
        raise StateError(f"load_state_dict: {name}={values!r}: {count} numbers are due. Use an older checkpoint.")
