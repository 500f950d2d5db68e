"""Plots of runs as PNG files. Needs matplotlib (`compcomm[bench]`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from ..core.optional import need

# Blue, vermilion, green, purple, orange, sky, black: told apart by colour-blind eyes too (Okabe and Ito, 2008).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

# Tol's muted scheme in an order that tells neighbours apart, and grey: ten that leave black free for a line on top.
TEN = ("#88CCEE", "#CC6677", "#332288", "#DDAA33", "#117733", "#AA4499", "#44AA99", "#882255", "#999933", "#777777")
"""Sky, rose, indigo, amber, green, purple, teal, wine, olive, grey."""


def training(rows: Sequence[Mapping[str, Any]], path: str | Path, title: str) -> Path:
    """Validation loss against seconds (left) and against megabytes sent per rank (right, logarithmic).

    ``rows`` are those of ``benchmarks/train.py``. The dashed line is the loss at which the first row ends; a ring marks
    the second from which another row stays below it.
    """
    need("matplotlib", "plots.training").use("Agg")
    pyplot = need("matplotlib.pyplot", "plots.training")
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 5.8), sharey=True, layout="constrained")
    for axes, column, scale in ((left, 0, 1.0), (right, 1, 1e-6)):
        for i, row in enumerate(rows):
            points = row["curve"][1:]  # the untrained model is the same for all, and has no place on a log axis
            x, y = [point[column] * scale for point in points], [point[3] for point in points]
            style = {"color": COLOURS[i % len(COLOURS)], "linewidth": 2, "marker": "o", "markersize": 3}
            axes.plot(x, y, label=short(row["reducer"]), **style)
            reached = row["seconds_to_target"]
            if axes is left and i and reached is not None:
                ring = {"marker": "o", "markersize": 10, "markerfacecolor": "none", "clip_on": False}
                axes.plot(reached, rows[0]["loss"], color=style["color"], linestyle="none", **ring)
        end = f"where {short(rows[0]['reducer'])} ends"
        axes.axhline(rows[0]["loss"], color="#888888", linewidth=1, linestyle="--", label=end)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_ylim(*heights(rows))
    left.set_xlim(left=0)
    left.set_xlabel("seconds of training")
    left.set_ylabel("validation loss")
    right.set_xlabel("megabytes sent per rank")
    right.set_xscale("log")
    ticker = need("matplotlib.ticker", "plots.training")
    right.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    right.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    right.xaxis.set_minor_formatter(ticker.NullFormatter())
    # Below both panels, where a name of any length covers no curve.
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(title)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=120)
    pyplot.close(figure)
    return target


def lines(
    panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    path: str | Path,
    title: str,
    across: str,
    up: str,
) -> Path:
    """One panel per name, one line per method, on a logarithmic height; what is zero or not finite is left out.

    ``panels[name][method]`` is (x, y). A method has the same colour in every panel.
    """
    need("matplotlib", "plots.lines").use("Agg")
    pyplot = need("matplotlib.pyplot", "plots.lines")
    columns = min(2, len(panels))
    count = -(-len(panels) // columns)
    figure, grid = pyplot.subplots(
        count, columns, figsize=(6.5 * columns, 4.6 * count), squeeze=False, layout="constrained"
    )
    methods = list(dict.fromkeys(method for curves in panels.values() for method in curves))
    handles: dict[str, Any] = {}
    for axes, (name, curves) in zip(grid.flat, panels.items(), strict=False):
        for method, (x, y) in curves.items():
            n = methods.index(method)
            points = [(a, b) for a, b in zip(x, y, strict=True) if isfinite(b) and b > 0]
            style = {"color": COLOURS[n % len(COLOURS)], "linestyle": "-" if n < len(COLOURS) else "--"}
            (handles[method],) = axes.plot(*zip(*points, strict=True), linewidth=1.8, label=method, **style)
        axes.set_title(name)
        axes.set_yscale("log")
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in list(grid.flat)[len(panels) :]:
        axes.axis("off")
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False)
    figure.suptitle(title)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)
    pyplot.close(figure)
    return target


def heights(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """The range of the loss axis: all that is drawn, except what lies above the untrained model's loss.

    A run that diverges leaves the picture at the top instead of pressing the others flat.

    >>> heights([{"curve": [[0, 0, 0, 4.0], [1, 1, 1, 3.0], [2, 2, 2, 2.0]]}])
    (1.95, 3.05)
    """
    start = max(row["curve"][0][3] for row in rows)
    drawn = [min(point[3], start) for row in rows for point in row["curve"][1:] if isfinite(point[3])] or [start]
    margin = 0.05 * (max(drawn) - min(drawn)) or 0.01
    return min(drawn) - margin, max(drawn) + margin


def short(name: str) -> str:
    """A label for a line: the constructor call without what all recommended settings share.

    >>> short("ErrorFeedback(QSGD(bits=4, rounding='nearest'))"), short("Exact()"), short("None")
    ('QSGD(bits=4) + feedback', 'Exact', 'DDP without a hook')
    """
    if name == "None":
        return "DDP without a hook"
    if name.startswith("ErrorFeedback(") and name.endswith("))"):
        name = name.removeprefix("ErrorFeedback(")[:-1] + " + feedback"
    return name.replace(", rounding='nearest'", "").replace("()", "")
