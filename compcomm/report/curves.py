"""Error against bytes as a PNG file: one panel per data set, one line per family of compressors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from ..core.optional import need
from .plots import COLOURS

MARKERS = "osD^vP*X"
STYLES = ("-", "--", ":", "-.")
FLOOR, CEILING = 1e-6, 10.0
"""Relative errors between which a panel reaches: below, a point is drawn at its edge; above, a line leaves it."""


def compressors(rows: Sequence[Mapping[str, Any]], path: str | Path, title: str, data: Sequence[str]) -> Path:
    """Relative squared error (logarithmic) against bits per element (logarithmic).

    ``rows`` are those of ``benchmarks/compressors.py``. The colour is that of the kind of method, marker and line tell
    the families of a kind apart; the dashed line is the error of sending nothing.
    """
    need("matplotlib", "curves.compressors").use("Agg")
    pyplot = need("matplotlib.pyplot", "curves.compressors")
    ticker = need("matplotlib.ticker", "curves.compressors")
    columns = 2
    lines = -(-(len(data) + 1) // columns)
    figure, grid = pyplot.subplots(
        lines, columns, figsize=(15, 5.6 * lines), sharex=True, sharey=True, layout="constrained"
    )
    panels = list(grid.flat)
    looks = styles(rows)
    for axes, name in zip(panels, data, strict=False):
        for family, look in looks.items():
            points = sorted(
                (row["bits_per_element"], max(row["relative_error"], FLOOR))
                for row in rows
                if row["data"] == name and row["family"] == family and isfinite(row.get("relative_error", float("nan")))
            )
            if points:
                axes.plot(*zip(*points, strict=True), label=family, linewidth=1.6, markersize=5, **look)
        axes.axhline(1.0, color="#888888", linewidth=1, linestyle="--")
        axes.set_title(name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_ylim(FLOOR / 1.5, CEILING)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
        axes.tick_params(labelbottom=True, labelleft=True)
        axes.set_xlabel("bits per element")
    for axes in grid[:, 0]:
        axes.set_ylabel("relative squared error")
    for axes in panels[len(data) :]:
        axes.axis("off")
    handles: dict[str, Any] = {}
    for axes in panels[: len(data)]:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    shown = [family for family in looks if family in handles]
    panels[-1].legend(
        [handles[f] for f in shown], shown, loc="center", ncols=2, frameon=False, fontsize=11, handlelength=3.5
    )
    figure.suptitle(title)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=100)
    pyplot.close(figure)
    return target


def styles(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """A look for each family in the order of the rows: a colour per kind, a marker and a line within it.

    >>> found = styles([{"family": "a", "kind": "x"}, {"family": "b", "kind": "x"}, {"family": "c", "kind": "y"}])
    >>> [look["marker"] for look in found.values()]
    ['o', 's', 'o']
    """
    kinds: dict[str, list[str]] = {}
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        members = kinds.setdefault(row["kind"], [])
        if row["family"] not in members:
            members.append(row["family"])
            n, colour = len(members) - 1, COLOURS[(len(kinds) - 1) % len(COLOURS)]
            found[row["family"]] = {
                "color": colour,
                "marker": MARKERS[n % len(MARKERS)],
                "linestyle": STYLES[n % len(STYLES)],
                "markerfacecolor": colour if n % 2 == 0 else "white",
            }
    return found
