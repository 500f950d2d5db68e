"""Pictures of recorded runs: loss over bytes and seconds, choices over time, error by layer. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..core.optional import need
from .plots import COLOURS
from .runs import Array, Run

UNSENT = "|x - C(x)| / |x|\n(x: gradient plus residual)"
"""What the colour of an error is."""
LATER = (
    "a controller's settings take effect up to 10 steps after a period's end: measured, then decided, in the background"
)
SAMPLED = "a column is the step at its right end; what was lost there is fed back, not gone; grey: no error"

LABELLED = 48
"""Parameters up to which every row of a heat map has its name."""

STYLES = ("-", "--", ":", "-.")
SMOOTH = 50
"""A loss curve is the moving mean over one part in so many of its points; the points are drawn behind it, pale."""


def losses(runs: Sequence[Run], path: Path) -> Path | None:
    """Loss against megabytes sent (left, logarithmic; steps where nothing was counted) and against seconds (right,
    linear); None where no run recorded a loss that is a number. A thick line is a moving mean, a thin one every loss.
    """
    everything = np.concatenate([run.columns("loss")[0] for run in runs])
    values = everything[np.isfinite(everything)]
    if not len(values):
        return None
    pyplot = _pyplot()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 5.8), sharey=True, layout="constrained")
    counted = any(run.steps and run.steps[-1].get("bytes_sent") for run in runs)
    widths: set[int] = set()
    for i, run in enumerate(runs):
        look = {"color": COLOURS[i % len(COLOURS)], "linestyle": STYLES[i // len(COLOURS) % len(STYLES)]}
        for axes, (key, scale) in ((left, ("bytes_sent", 1e-6) if counted else ("step", 1)), (right, ("seconds", 1))):
            x, y = run.columns(key, "loss")
            kept = (x > 0) & np.isfinite(y)
            x, y, even = x[kept] * scale, y[kept], smooth(y[kept])
            if len(even) < len(y):
                axes.plot(x, y, color=look["color"], linewidth=0.6, alpha=0.2)
                widths.add(averaged(run))
            axes.plot(x[len(y) - len(even) :], even, linewidth=2, label=run.name, **look)
    low, high = float(values.min()), float(np.quantile(values, 0.995))  # a spike does not flatten the rest
    left.set_ylim(low - 0.03 * (high - low or 1), high + 0.05 * (high - low or 1))
    left.set_xlabel("megabytes that rank 0 had sent (logarithmic axis)" if counted else "steps (linear axis)")
    left.set_ylabel("loss that rank 0 recorded (linear axis)")
    if counted:
        _decades(left)
    right.set_xlabel("seconds (linear axis)")
    legend = figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    if widths:
        legend.set_title(thick(widths), prop={"size": 9})
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return _finish(pyplot, figure, path, f"loss over {'bytes' if counted else 'steps'} and over time")


def choices(run: Run, path: Path) -> Path | None:
    """A row per parameter, in the model's order, and steps to the right; None where no controller chose."""
    steps, names, values = run.grid("choices")
    if not names:
        return None
    tunable = run.about.get("tunable") or run.about.get("knob") or "setting"
    wide = float(np.nanmax(values)) > 8 * float(np.nanmin(values)) > 0
    end = max(float(run.steps[-1]["step"]), steps[-1]) + 1
    edges = np.append(steps, end)  # a choice holds until the next
    return _heat(edges, names, values, path, f"{run.name}: {tunable} by parameter", LATER, tunable, logarithmic=wide)


def errors(run: Run, path: Path) -> Path | None:
    """|x - C(x)| / |x| by parameter over time, in colours from 0 to 1 for every run, so that runs can be compared; None
    where none was recorded."""
    steps, names, values = run.grid("errors")
    if not names:
        return None
    edges = np.insert(steps, 0, steps[0] - (steps[1] - steps[0] if len(steps) > 1 else 1))
    title = f"{run.name}: relative error by parameter"
    return _heat(edges, names, values, path, title, SAMPLED, UNSENT, logarithmic=False, bounds=(0.0, 1.0))


def smooth(y: Array) -> Array:
    """Running means, the last as many as fit; short curves as they are.

    >>> len(smooth(np.ones(40))), len(smooth(np.ones(1000)))
    (40, 981)
    """
    width = len(y) // SMOOTH
    return np.convolve(y, np.full(width, 1 / width), mode="valid") if width > 1 else y


def averaged(run: Run) -> int:
    """Over how many steps ``smooth`` takes the mean of a run's loss: points, times the steps from one to the next."""
    steps, y = run.columns("step", "loss")
    steps = steps[np.isfinite(y)]
    apart = float(np.median(np.diff(steps))) if len(steps) > 1 else 1.0
    return max(1, len(steps) // SMOOTH) * round(apart)


def thick(widths: Collection[int]) -> str:
    """What is what in a picture of losses.

    >>> thick({8}), thick({8, 40, 16})[:41]
    ('thick: moving mean over the last 8 steps; thin: each recorded loss', 'thick: moving mean over the last 8 to 40 ')
    """
    low, high = min(widths), max(widths)
    span = f"{low}" if low == high else f"{low} to {high}"
    return f"thick: moving mean over the last {span} steps; thin: each recorded loss"


def _heat(
    edges: Array,
    names: Sequence[str],
    values: Array,
    path: Path,
    title: str,
    remark: str,
    what: str,
    *,
    logarithmic: bool,
    bounds: tuple[float, float] | None = None,
) -> Path:
    """Columns between ``edges``, rows from the top; ``remark`` in small letters under the title. ``bounds`` of the
    colours; None: the least and the largest value. What lies above them is said to by an arrow at the bar's end."""
    pyplot, colors, ticker = _pyplot(), need("matplotlib.colors", "report"), need("matplotlib.ticker", "report")
    figure, axes = pyplot.subplots(figsize=(11, min(16.0, max(3.0, 0.22 * len(names) + 1.5))), layout="constrained")
    norm = (colors.LogNorm if logarithmic else colors.Normalize)(*bounds or ())
    rows = np.arange(len(names) + 1) - 0.5
    mesh = axes.pcolormesh(edges, rows, np.ma.masked_invalid(values), norm=norm, cmap="viridis", rasterized=True)
    apart = -(-len(names) // LABELLED)
    axes.set_yticks(range(0, len(names), apart), names[::apart], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("step")
    axes.set_facecolor("#dddddd")
    axes.spines[:].set_visible(False)
    axes.set_title(remark, fontsize=9, color="#555555")
    beyond = bounds is not None and bool((values > bounds[1]).any())
    bar = figure.colorbar(mesh, ax=axes, label=what, aspect=40, extend="max" if beyond else "neither")
    bar.outline.set_visible(False)
    if bounds is None and not logarithmic and bool((values == np.round(values))[np.isfinite(values)].all()):
        bar.ax.yaxis.set_major_locator(ticker.MaxNLocator(integer=True))  # bits, or ranks
    if logarithmic:
        bar.ax.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        bar.ax.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
        bar.ax.yaxis.set_minor_locator(ticker.NullLocator())
    return _finish(pyplot, figure, path, title)


def _decades(axes: Any) -> None:
    """A logarithmic width with numbers that people read."""
    ticker = need("matplotlib.ticker", "report")
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(_plainly))
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())


def _plainly(value: float, _: int) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _pyplot() -> Any:
    need("matplotlib", "report").use("Agg")
    return need("matplotlib.pyplot", "report")


def _finish(pyplot: Any, figure: Any, path: Path, title: str) -> Path:
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path
