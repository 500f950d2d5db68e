"""Pictures of recorded runs: loss over bytes and seconds, choices over time, error by layer. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .extras import need
from .plots import COLOURS
from .runs import Run

LABELLED = 48
"""Parameters up to which every row of a heat map has its name."""


def losses(runs: Sequence[Run], path: Path) -> Path | None:
    """Loss against megabytes sent (left, logarithmic) and against seconds (right); None where no run recorded one."""
    shown = [(i, run) for i, run in enumerate(runs) if run.series("loss")[0]]
    if not shown:
        return None
    pyplot = _pyplot("losses")
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 5.6), sharey=True, layout="constrained")
    for i, run in shown:
        style = {"color": COLOURS[i % len(COLOURS)], "linewidth": 1.8, "linestyle": "-" if i < len(COLOURS) else "--"}
        sent, loss = run.against("bytes_sent", "loss")
        points = [(b * 1e-6, v) for b, v in zip(sent, loss, strict=True) if b > 0]
        if points:
            left.plot(*zip(*points, strict=True), label=run.name, **style)
        right.plot(*run.against("seconds", "loss"), label=run.name, **style)
    left.set_xscale("log")
    left.set_xlabel("megabytes sent per rank")
    left.set_ylabel("loss")
    right.set_xlabel("seconds")
    right.legend(frameon=False)
    return _finish(pyplot, figure, (left, right), path, "loss over bytes and over time")


def choices(run: Run, path: Path) -> Path | None:
    """A row per parameter, a column per decision; None where no controller chose."""
    steps, tables = run.tables("choices")
    if not tables:
        return None
    whole = all(v == int(v) for table in tables for v in table.values())
    what = "bits or rank" if whole else "density, log10"
    return _heat(run, steps, tables, path, f"{run.name}: settings over time", what, logarithmic=not whole)


def errors(run: Run, path: Path) -> Path | None:
    """|x - C(x)| / |x| by parameter over time; None where none was recorded."""
    steps, tables = run.tables("errors")
    if not tables:
        return None
    return _heat(run, steps, tables, path, f"{run.name}: relative error by parameter", "error", logarithmic=False)


def _heat(
    run: Run, steps: Sequence[int], tables: Sequence[Mapping[str, float]], path: Path, title: str, what: str,
    logarithmic: bool,
) -> Path:  # fmt: skip
    pyplot = _pyplot("heat map")
    sizes: Mapping[str, int] = run.about.get("parameters") or {}
    names = [n for n in sizes if any(n in t for t in tables)] or sorted({n for t in tables for n in t})
    grid = np.array([[t.get(n, np.nan) for t in tables] for n in names], dtype=float)
    if logarithmic:
        grid = np.log10(np.where(grid > 0, grid, np.nan))
    height = min(16.0, max(3.0, 0.22 * len(names) + 1.5))
    figure, axes = pyplot.subplots(figsize=(11, height), layout="constrained")
    image = axes.imshow(grid, aspect="auto", interpolation="nearest", cmap="viridis")
    apart = max(1, -(-len(names) // LABELLED))
    axes.set_yticks(range(0, len(names), apart), names[::apart], fontsize=7)
    between = max(1, -(-len(steps) // 10))
    axes.set_xticks(range(0, len(steps), between), [str(s) for s in steps[::between]])
    axes.set_xlabel("step")
    figure.colorbar(image, ax=axes, label=what)
    return _finish(pyplot, figure, (), path, title)


def _pyplot(call: str) -> Any:
    need("matplotlib", f"report: {call}").use("Agg")
    return need("matplotlib.pyplot", f"report: {call}")


def _finish(pyplot: Any, figure: Any, axes: Sequence[Any], path: Path, title: str) -> Path:
    for each in axes:
        each.grid(alpha=0.25)
        each.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path
