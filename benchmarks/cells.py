"""Tables in markdown, and the numbers in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(columns)} |", "| --- |" + " ---: |" * (len(columns) - 1)]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def size(value: float | None) -> str:
    return "-" if value is None else f"{value / 1e6:.3g} MB" if value >= 1e6 else f"{value / 1e3:.3g} kB"


def times(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}x"


def spread(row: Mapping[str, Any], key: str, places: int = 4) -> str:
    """A mean and its standard deviation over several runs, where there were several."""
    if key not in row:
        return "-"
    if row[key] is None:
        return "diverged"
    around = row[f"{key}_std"]
    return f"{row[key]:.{places}f}" + ("" if around is None else f" ± {around:.{places}f}")
