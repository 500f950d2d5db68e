"""Plots of runs as PNG files. Needs matplotlib (`compcomm[bench]`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .extras import need

# Blue, vermilion, green, purple, orange, sky, black: told apart by colour-blind eyes too (Okabe and Ito, 2008).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
End = tuple[float, float, str, str]
"""Where a line ends, its label, its colour."""


def training(rows: Sequence[Mapping[str, Any]], path: str | Path, title: str) -> Path:
    """Validation loss against seconds (left) and against megabytes sent per rank (right, logarithmic).

    ``rows`` are those of ``benchmarks/train.py``. The dashed line is the loss at which the first row ends.
    """
    need("matplotlib", "plots.training").use("Agg")
    pyplot = need("matplotlib.pyplot", "plots.training")
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 5.2), sharey=True, layout="constrained")
    lowest = min(point[3] for row in rows for point in row["curve"][1:])
    highest = max(row["curve"][min(2, len(row["curve"]) - 1)][3] for row in rows)
    for axes, column, scale in ((left, 0, 1.0), (right, 1, 1e-6)):
        ends: list[End] = []
        for i, row in enumerate(rows):
            points = row["curve"][1:]  # the untrained model is the same for all, and has no place on a log axis
            x, y = [point[column] * scale for point in points], [point[3] for point in points]
            colour = COLOURS[i % len(COLOURS)]
            axes.plot(x, y, color=colour, linewidth=2, marker="o", markersize=3, label=row["reducer"])
            ends.append((x[-1], y[-1], short(row["reducer"]), colour))
        axes.axhline(rows[0]["loss"], color="#888888", linewidth=1, linestyle="--")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        margin = 0.1 * (highest - lowest) or 0.01
        axes.set_ylim(lowest - margin, highest + margin)
        if axes is left:  # all end at the same time: names go to the right of the axes
            _beside(axes, ends, gap=0.055 * (highest - lowest + 2 * margin))
        else:
            for x_end, y_end, name, colour in ends:
                below = {"xytext": (0, -9), "textcoords": "offset points", "ha": "center", "va": "top"}
                axes.annotate(name, (x_end, y_end), color=colour, **below)
    left.set_xlabel("seconds of training")
    left.set_ylabel("validation loss")
    right.set_xlabel("megabytes sent per rank")
    right.set_xscale("log")
    ticker = need("matplotlib.ticker", "plots.training")
    right.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    right.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    right.xaxis.set_minor_formatter(ticker.NullFormatter())
    figure.suptitle(title)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=120)
    pyplot.close(figure)
    return target


def short(name: str) -> str:
    """A label for a line.

    >>> short("ErrorFeedback(QSGD(bits=4, rounding='nearest'))"), short("Exact()")
    ('QSGD(bits=4)', 'Exact')
    """
    inner = name.removeprefix("ErrorFeedback(")[:-1] if name.startswith("ErrorFeedback(") else name
    return inner.replace(", rounding='nearest'", "").replace("()", "")


def _beside(axes: Any, ends: list[End], gap: float) -> None:
    """Names at the height of the lines' ends, in their colours, moved apart where they would touch."""
    height = float("-inf")
    for _, y, name, colour in sorted(ends, key=lambda end: end[1]):
        height = max(y, height + gap)
        axes.annotate(name, (1.02, height), xycoords=("axes fraction", "data"), color=colour, va="center")
