"""When 1-bit Adam's warm-up ends: after so many steps, or when the variance has become stable."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..store import StateError

STABLE = 0.96
"""The variance counts as stable where |v_(t - window)|_1 >= STABLE |v_t|_1."""
CHECKS = 20
"""Measurements per window."""


class Freeze:
    """``rule``: a number of steps, or "auto".

    "auto": |v|_1 is measured 20 times per window of 1/(1 - beta2) steps; the warm-up ends when the value of one window
    ago is at least 0.96 of the present one: the variance has stopped to grow. (Source: Tang et al. 2021,
    arXiv:2102.02888, section 5, as recalled; a variance that falls counts as stable, as there: steps are then smaller
    than Adam's, not larger.)

    Neither ends the warm-up while the learning rate rises: gradients and variance are not yet those of training. A
    rise begins the window of "auto" anew; a number of steps is prolonged until a step whose rates are no larger than
    those of the step before.
    """

    def __init__(self, rule: int | str, beta2: float) -> None:
        self.rule = rule
        self.window = max(1, round(1.0 / (1.0 - beta2)))
        self._every = max(1, self.window // CHECKS)
        self._past: deque[float] = deque(maxlen=self.window // self._every + 1)
        self._since = 0
        self._rates: list[float] | None = None

    def due(self, step: int, rates: Sequence[float], size: Callable[[], float], agree: Callable[[bool], bool]) -> bool:
        """Whether the warm-up ends after this step, the ``step``-th, which was made at these learning rates.

        ``size()`` measures |v|_1; ``agree(x)`` is whether all ranks say x, so that all end it after the same step.
        """
        rising = self._rates is not None and any(a > b for a, b in zip(rates, self._rates, strict=False))
        self._rates = list(rates)
        if isinstance(self.rule, int):
            return step >= self.rule and not rising
        if rising:
            self._past.clear()
            self._since = step
        if (step - self._since) % self._every:
            return False
        self._past.append(size())
        if len(self._past) < (self._past.maxlen or 0):
            return False
        old, now = self._past[0], self._past[-1]
        return agree(now > 0.0 and old >= STABLE * now)

    def state_dict(self) -> dict[str, Any]:
        """What it has seen: numbers alone."""
        return {"past": list(self._past), "since": self._since, "rates": self._rates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where ``state_dict`` was taken.

        Raises:
            StateError: it is something else.
        """
        past: Any = state.get("past")
        since: Any = state.get("since")
        rates: Any = state.get("rates")
        good = isinstance(past, list) and isinstance(rates, list | None) and isinstance(since, int)
        if not good or not all(isinstance(x, int | float) for x in (*past, *(rates or ()))):
            raise StateError("load_state_dict: what the warm-up has seen is damaged. Use an older checkpoint.")
        self._past.clear()
        self._past.extend(past)
        self._since, self._rates = since, rates


def check_rule(call: str, rule: object) -> None:
    """Raises ValueError for what is no rule."""
    good = rule == "auto" or (isinstance(rule, int) and not isinstance(rule, bool) and rule >= 1)
    if not good:
        raise ValueError(
            f"{call}(freeze={rule!r}): give the number of warm-up steps (15 to 25 % of the run), 1 or more, or 'auto'."
        )
