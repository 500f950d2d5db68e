"""Settings and tables as people read them."""

from __future__ import annotations

from collections.abc import Sequence

SHOWN = 12
"""Parameters that have a line of their own in a table, the largest ones."""


def value(setting: float) -> str:
    """A density, or a whole number of bits or ranks.

    >>> value(4.0), value(0.00125), value(20000.0)
    ('4', '0.00125', '20000')
    """
    return f"{setting:.0f}" if setting == round(setting) else f"{setting:.4g}"


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
