"""When 1-bit Adam's warm-up ends: after so many steps, or when the variance has become stable."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..core.state import StateError

STABLE = 0.96
"""The least |v|_1 of a window as a part of the greatest, from which on the variance counts as stable."""
CHECKS = 20
"""Measurements per window."""


class Freeze:
    """``rule``: a number of steps, or "auto".

    "auto": |v|_1 is measured 20 times per window of 1/(1 - beta2) steps; the warm-up ends when the least of a window's
    measurements is at least 0.96 of the greatest: v neither grows nor falls. With beta2 = 0.999 and gradients that stay
    of one size that is after some 3,800 steps. (Source: Tang et al. 2021, arXiv:2102.02888, section 5, as recalled.
    There it is enough that |v|_1 has not grown by more than that in one window, so that the top of a hump and a fall
    count as stable too. But a v that an early spike has left would stay for good, and with it steps that are many
    times too small.)

    Neither ends the warm-up while the learning rate rises, or while v is all zero: gradients and variance are not yet
    those of training. A rise begins the window of "auto" anew; a number of steps is prolonged until a step whose rates
    are no larger than those of the step before.
    """

    def __init__(self, rule: int | str, beta2: float) -> None:
        self.rule = rule
        self.window = max(1, round(1.0 / (1.0 - beta2)))
        self._every = max(1, self.window // CHECKS)
        self._past: deque[float] = deque(maxlen=self.window // self._every + 1)
        self._rates: list[float] | None = None

    def due(self, step: int, rates: Sequence[float], size: Callable[[], float], agree: Callable[[bool], bool]) -> bool:
        """Whether the warm-up ends after this step, the ``step``-th, which was made at these learning rates.

        ``size()`` measures |v|_1; ``agree(x)`` is whether all ranks say x, so that all end it after the same step. It
        is called at steps that follow from their number alone.
        """
        rising = self._rates is not None and any(a > b for a, b in zip(rates, self._rates, strict=False))
        self._rates = list(rates)
        if isinstance(self.rule, int):
            return step >= self.rule and agree(not rising and size() > 0.0)
        if rising:
            self._past.clear()
        if step % self._every:
            return False
        self._past.append(size())
        full = len(self._past) == self._past.maxlen
        return agree(full and min(self._past) >= STABLE * max(self._past) > 0.0)

    def state_dict(self) -> dict[str, Any]:
        """What it has seen: numbers alone."""
        return {"past": list(self._past), "rates": self._rates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where ``state_dict`` was taken.

        Raises:
            StateError: it is something else.
        """
        past: Any = state.get("past")
        rates: Any = state.get("rates")
        good = isinstance(past, list) and isinstance(rates, list | None)
        if not good or not all(isinstance(x, int | float) for x in (*past, *(rates or ()))):
            raise StateError("load_state_dict: what the warm-up has seen is damaged. Use an older checkpoint.")
        self._past.clear()
        self._past.extend(past)
        self._rates = rates


def check_rule(call: str, rule: object) -> None:
    """Raises ValueError for what is no rule."""
    good = rule == "auto" or (isinstance(rule, int) and not isinstance(rule, bool) and rule >= 1)
    if not good:
        raise ValueError(
            f"{call}(freeze={rule!r}): give the number of warm-up steps (15 to 25 % of the run), 1 or more, or 'auto'."
        )
