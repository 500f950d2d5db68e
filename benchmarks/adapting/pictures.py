"""The pictures of `benchmarks/adaptive.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compcomm.core.optional import need
from compcomm.report.plots import COLOURS


def gains(rows: Sequence[Mapping[str, Any]], curve: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Left: ratio of uniform and of L-GreCo, by model and family. Right: ratio over the budget."""
    pyplot = _pyplot()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(17, 5.6), layout="constrained", width_ratios=(3, 2))
    shown = [r for r in rows if r["family"] in ("density", "bits", "rank")]
    places = np.arange(len(shown))
    left.bar(places - 0.2, [r["uniform_ratio"] for r in shown], 0.4, label="one setting for all", color=COLOURS[5])
    bars = left.bar(places + 0.2, [r["chosen_ratio"] for r in shown], 0.4, label="L-GreCo", color=COLOURS[1])
    left.bar_label(bars, [f"{r['gain']:.2f}x" for r in shown], padding=2, fontsize=9)
    left.set_xticks(places, [f"{r['model']}\n{r['family']}" for r in shown], fontsize=7)
    left.set_yscale("log")
    left.set_ylabel("fp32 bytes over bytes sent")
    left.legend(frameon=False)
    for i, model in enumerate(dict.fromkeys(r["model"] for r in curve)):
        points = [(r["alpha"], r["ratio"]) for r in curve if r["model"] == model and r["ratio"]]
        right.plot(*zip(*points, strict=True), marker="o", label=model, color=COLOURS[i])
    right.set_xlabel("budget, times the uniform setting's error")
    right.set_ylabel("ratio of the coded parameters")
    right.set_yscale("log")
    right.legend(frameon=False, title="densities")
    _finish(pyplot, figure, (left, right), path, "L-GreCo at the error of one setting for all layers")


def training(rows: Sequence[Mapping[str, Any]], path: str | Path, title: str) -> None:
    """Loss over bytes, densities left and bits and ranks in the middle; right: one run's choices over time."""
    pyplot = _pyplot()
    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(19, 6), layout="constrained")
    dense = [row for row in rows if row["name"].startswith(("top-k", "Accordion", "L-GreCo"))]
    others = [row for row in rows if row not in dense]
    for axes, shown in ((left, dense), (middle, others)):
        for i, row in enumerate(shown):
            points = row["curve"][1:]
            style = {"color": COLOURS[i % len(COLOURS)], "linestyle": "-" if i < len(COLOURS) else "--"}
            axes.plot([p[1] * 1e-6 for p in points], [p[2] for p in points], label=row["name"], linewidth=1.7, **style)
        axes.set_xscale("log")
        axes.set_xlabel("megabytes sent per worker")
        axes.set_ylim(*_limits(rows))
        axes.legend(frameon=False, fontsize=8)
    left.set_ylabel("validation loss")
    chosen = next(row for row in rows if row["name"] == "top-k, L-GreCo")["choices"]
    names = list(chosen[0][1])
    grid = np.array([[values[n] for _, values in chosen] for n in names])
    image = right.imshow(np.log10(grid), aspect="auto", interpolation="nearest", cmap="viridis")
    right.set_yticks(range(len(names)), names, fontsize=7)
    right.set_xticks(range(0, len(chosen), 4), [str(chosen[i][0]) for i in range(0, len(chosen), 4)])
    right.set_xlabel("step")
    right.set_title("densities that L-GreCo chose (log10)", fontsize=10)
    figure.colorbar(image, ax=right)
    _finish(pyplot, figure, (left, middle), path, title)


def _limits(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """From the lowest end to what the first validation of all runs shows, with room."""
    first, last = max(row["curve"][1][2] for row in rows), min(row["loss"] for row in rows)
    return last - 0.05 * (first - last), first + 0.05 * (first - last)


def _pyplot() -> Any:
    need("matplotlib", "adaptive.py").use("Agg")
    return need("matplotlib.pyplot", "adaptive.py")


def _finish(pyplot: Any, figure: Any, axes: Sequence[Any], path: str | Path, title: str) -> None:
    for each in axes:
        each.grid(alpha=0.25)
        each.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
