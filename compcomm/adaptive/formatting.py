"""Settings, and what was measured of them, as people read them."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, isnan
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .telemetry import Telemetry

SHOWN = 12
"""Parameters that have a line of their own in a table, the largest ones."""
_HEAD = ("parameter", "elements", "norm", "setting", "error", "bytes", "without", "error", "bytes")
_NOTES = (
    "without: the setting it would have without this controller, with its error and bytes",
    "norm: of the sum of the last gradients, with the residual where there is one; error: the share of it that is lost",
)
_EARLY = "nothing measured yet: the first measurement comes at the end of the first period"


def value(setting: float) -> str:
    """A density, or a whole number of bits or ranks.

    >>> value(4.0), value(0.00125), value(20000.0)
    ('4', '0.00125', '20000')
    """
    return f"{setting:.0f}" if setting == round(setting) else f"{setting:.4g}"


def telemetry(t: Telemetry) -> str:
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


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of plain text, indented by two: names to the left, numbers to the right.

    >>> print("\\n".join(columns([("a", "elements"), ("bias", "10")])))
      a     elements
      bias        10
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            ["", row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in rows
    ]


def _error(lost: float, norm: float) -> str:
    if isnan(lost):
        return "not measured"
    share = float(lost) / float(norm) if norm else float(lost)
    return f"{share:.4f}" if isfinite(share) else "-"
