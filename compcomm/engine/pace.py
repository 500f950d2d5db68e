"""How backward passes make steps: what a script may say between two of them, the same on every rank."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from enum import Enum

NOTHING = (
    "discard: there is no backward pass to take back: none was averaged since attach, load_state_dict(), "
    "reset_state(), rescale_error(), bind() or the last discard(). Call it right after the pass that is thrown away."
)


class Kind(Enum):
    """What a backward pass is to the attachment."""

    STEP = "step"
    """Averaged by the reducer, and counted."""
    PART = "part"
    """One of several that make a step, and not the last: gradients stay this rank's own."""
    EXACT = "exact"
    """Ignored: averaged exactly, memory and the step's number rest."""
    LOCAL = "local"
    """Ignored, and nothing is sent."""

    @property
    def sent(self) -> bool:
        """Whether gradients are averaged."""
        return self in (Kind.STEP, Kind.EXACT)


class Pace:
    """``passes`` of them make a step; those inside ``ignoring`` are none of these.

    Kept by the host's state, which may be there before its attachment is.
    """

    def __init__(self) -> None:
        self.last: Kind | None = None
        """What the last pass was; None: nothing of it can be taken back any more."""
        self._passes, self._done = 1, 0
        self._aside: Kind | None = None

    @property
    def passes(self) -> int:
        """How many backward passes make a step."""
        return self._passes

    @passes.setter
    def passes(self, value: int) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(
                f"passes = {value!r}: the number of backward passes that make a step, an integer, 1 or more, the same "
                f"on every rank."
            )
        self._passes = value  # passes that were made count: a shorter step may be announced in its middle

    @property
    def done(self) -> int:
        """Passes of the step that is not complete: so many lie summed in the gradients, this rank's own."""
        return self._done

    def take(self, first: bool, last: bool) -> Kind:
        """What the pass is that a bucket belongs to: ``first`` or ``last`` of the pass. A pass that raises in the
        middle does not count."""
        if first or self.last is None:
            self.last = self._aside or (Kind.STEP if self._done + 1 >= self._passes else Kind.PART)
        if last and self._aside is None:
            self._done = self._done + 1 if self.last is Kind.PART else 0
        return self.last

    def restart(self) -> None:
        """The next pass is the first of its step, and there is nothing to take back."""
        self.last, self._done = None, 0

    @contextmanager
    def ignoring(self, average: bool) -> Generator[None]:
        """Passes that begin inside are ignored."""
        if not isinstance(average, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"ignoring(average={average!r}): True averages exactly, False sends nothing.")
        before, self._aside = self._aside, Kind.EXACT if average else Kind.LOCAL
        try:
            yield
        finally:
            self._aside = before
