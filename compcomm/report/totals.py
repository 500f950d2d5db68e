"""Sums over a whole run, of counters that begin anew in the middle of it."""

from __future__ import annotations

from typing import Any

from ..engine.statistics import Counters

NAMES = ("bytes_sent", "kernel_seconds", "wire_seconds", "exposed_seconds", "review_seconds")


class Sums:
    """Adds up what ``Attachment.counters`` counts. These begin anew where a checkpoint is loaded, and an optimizer has
    another attachment in its next phase. What was counted before the first ``take`` or ``begin`` is not of this run."""

    def __init__(self) -> None:
        self.totals: dict[str, float] = dict.fromkeys(NAMES, 0)
        self._owner: Any = None
        self._last = _NONE

    def begin(self, owner: Any, counters: Counters) -> None:
        """Counts from here."""
        self._owner, self._last = owner, counters

    def take(self, owner: Any, counters: Counters) -> Counters:
        """Adds what was counted since the last call, and returns that."""
        rest = _NONE
        if owner is not self._owner:  # the old one may have counted on until the new one came
            rest = _NONE if self._owner is None else self._owner.counters().since(self._last)
            self._owner, self._last = owner, _NONE
        part = counters.since(self._last)
        part = part._replace(**{name: getattr(part, name) + getattr(rest, name) for name in ("steps", *NAMES)})
        self._last = counters
        for name in NAMES:
            self.totals[name] += getattr(part, name)
        return part


_NONE = Counters(0, 0, 0, 0.0, 0.0, 0.0, 0.0, False)
