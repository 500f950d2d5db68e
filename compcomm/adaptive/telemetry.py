"""What is known of each parameter: its gradient's norm, and what every setting would lose and send."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite, isnan

import numpy as np
from numpy.typing import NDArray

from .formatting import SHOWN, columns, value

Table = NDArray[np.float64]
_HEAD = ("parameter", "elements", "norm", "setting", "error", "bytes", "without", "error", "bytes")
_NOTES = (
    "without: the setting it would have without this controller, with its error and bytes",
    "norm: of the sum of the last gradients, with the residual where there is one; error: the share of it that is lost",
)
_EARLY = "nothing measured yet: the first measurement comes at the end of the first period"


@dataclass(frozen=True)
class Telemetry:
    """Of m parameters and P settings; the same on every rank.

    ``norms`` [m]: the L2 norm of the gathered gradient; ``before``: at the last time, 0 at first. ``errors`` [m, P]:
    the L2 norm of what each setting loses of it, NaN where it was not measured. ``sizes`` [m, P]: bytes of its section
    in a payload. ``current``, ``reference`` [m]: positions of the setting in use, and of the one that it would have
    without this controller. ``first``: nothing was measured before. ``seconds`` [P]: what it took to code the gathered
    gradients of all parameters at each setting, in the background, as one rank would need for all; NaN where one pass
    measures all settings, empty where none was made. Times are not kept in checkpoints.
    """

    names: tuple[str, ...]
    numel: NDArray[np.int64]
    settings: tuple[float, ...]
    norms: Table
    before: Table
    errors: Table
    sizes: NDArray[np.int64]
    current: NDArray[np.int64]
    reference: NDArray[np.int64]
    first: bool
    seconds: Table = field(default_factory=lambda: np.zeros(0))

    def __str__(self) -> str:
        return _table(self)


def _table(t: Telemetry) -> str:
    """A table by parameter, the largest ones first and the rest in one line: the gradient's norm, and the error and the
    bytes of the setting in use and of the one that it would have without the controller."""
    count = len(t.names)
    rows = range(count)
    early = t.first and not t.norms.any()
    order = sorted(rows, key=lambda i: (-int(t.numel[i]), t.names[i]))
    now, then = t.sizes[np.arange(count), t.current], t.sizes[np.arange(count), t.reference]

    def side(i: int, j: int) -> tuple[str, ...]:
        return value(t.settings[j]), "-" if early else _error(t.errors[i, j], t.norms[i]), f"{t.sizes[i, j]:,}"

    def row(i: int) -> tuple[str, ...]:
        norm = "-" if early else f"{t.norms[i]:.4g}"
        return t.names[i], f"{t.numel[i]:,}", norm, *side(i, t.current[i]), *side(i, t.reference[i])

    lines = [_HEAD, *map(row, order[:SHOWN])]
    if rest := order[SHOWN:]:
        sums = [f"{of[rest].sum():,}" for of in (t.numel, now, then)]
        lines.append((f"and {len(rest)} more", sums[0], "", "", "", sums[1], "", "", sums[2]))
    among = f"{len(t.settings)} settings from {value(t.settings[0])} to {value(t.settings[-1])}"
    title = f"{count} parameter{'s' * (count != 1)}, {among}: {now.sum():,} bytes in use, {then.sum():,} without"
    return "\n".join([title, *columns(lines), *(f"  {note}" for note in (*_NOTES, *([_EARLY] if early else [])))])


def _error(lost: float, norm: float) -> str:
    if isnan(lost):
        return "not measured"
    share = float(lost) / float(norm) if norm else float(lost)
    return f"{share:.4f}" if isfinite(share) else "-"
