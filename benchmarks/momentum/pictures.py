"""Pictures of the optimizers: losses against steps and bytes, and seconds per step as bars."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from compcomm.core.optional import need
from compcomm.report import plots

Row = dict[str, Any]


def curves(rows: Sequence[Row], path: str | Path, title: str) -> None:
    """Validation loss against steps (left) and against megabytes sent per rank (right, logarithmic): the mean over the
    seeds, and from the least to the greatest of them as a band."""
    need("matplotlib", "pictures.curves").use("Agg")
    pyplot = need("matplotlib.pyplot", "pictures.curves")
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 5.8), sharey=True, layout="constrained")
    names = list(dict.fromkeys(row["method"] for row in rows))
    for n, name in enumerate(names):
        colour = plots.COLOURS[n % len(plots.COLOURS)]
        style = "-" if n < len(plots.COLOURS) else "--"
        runs = [row["curve"][1:] for row in rows if row["method"] == name]  # the untrained model is the same for all
        points = list(zip(*runs, strict=True))
        losses = [[p[3] for p in at] for at in points]
        middle = [sum(at) / len(at) for at in losses]
        low, high = [min(at) for at in losses], [max(at) for at in losses]
        for axes, column, scale in ((left, 2, 1.0), (right, 1, 1e-6)):
            x = [sum(p[column] for p in at) / len(at) * scale for at in points]
            axes.plot(x, middle, style, color=colour, linewidth=1.8, label=name)
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    low, high = plots.heights(rows)
    least = min(p[3] for row in rows for p in row["curve"] if isfinite(p[3]))
    if high > 5 * least:  # most of the run would lie flat on the ground
        left.set_yscale("log")
        low, high = 0.9 * least, 1.1 * high
        _decades(left.yaxis)
    left.set_ylim(low, high)
    left.set_xlim(left=0)
    left.set_xlabel("steps")
    left.set_ylabel("validation loss")
    right.set_xlabel("megabytes sent per rank")
    right.set_xscale("log")
    _decades(right.xaxis)
    for axes in (left, right):
        _plain(axes)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=len(names), frameon=False)
    _save(figure, path, title)


def bars(results: Sequence[Row], path: str | Path) -> None:
    """Seconds per step, the wait included, of each contestant on each link; one panel per model. ``results`` are the
    files that `optimizers.py throughput` writes."""
    need("matplotlib", "pictures.bars").use("Agg")
    pyplot = need("matplotlib.pyplot", "pictures.bars")
    models = list(dict.fromkeys(found["model"] for found in results))
    figure, panels = pyplot.subplots(
        1, len(models), figsize=(6.8 * len(models), 5.2), squeeze=False, layout="constrained"
    )
    names = list(dict.fromkeys(row["contestant"] for found in results for row in found["rows"]))
    width = 0.8 / len(names)
    for model, axes in zip(models, panels[0], strict=True):
        groups = [found for found in results if found["model"] == model]
        for n, name in enumerate(names):
            held = [(g, row) for g, found in enumerate(groups) for row in found["rows"] if row["contestant"] == name]
            if held:
                x = [g + (n - (len(names) - 1) / 2) * width for g, _ in held]
                style = {"color": plots.COLOURS[n % len(plots.COLOURS)], "label": name}
                made = axes.bar(x, [row["seconds"] for _, row in held], width, **style)
                axes.bar_label(made, [f"{row['seconds']:.2g}" for _, row in held], fontsize=6, padding=1)
        axes.set_xticks(range(len(groups)), [where(found) for found in groups], fontsize=8)
        axes.set_yscale("log")
        _decades(axes.yaxis)
        axes.set_ylabel("seconds per step")
        axes.set_title(f"{Path(model).stem}, {groups[0]['numel'] / 1e6:.1f} M parameters")
        _plain(axes)
    handles = {h.get_label(): h for axes in panels[0] for h in axes.containers if hasattr(h, "patches")}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False)
    _save(figure, path, f"a step with {results[0]['wait']:g} s of waiting in place of compute")


def where(found: Row) -> str:
    """The hosts and their links, in two lines."""
    lab = found["lab"]
    return f"{lab['hosts']} hosts\n{lab['rate']}" if lab else f"{found['rows'][0]['world_size']} ranks\n{found['link']}"


def read(folder: Path) -> list[Row]:
    """The throughput files in a folder, in the order of their names."""
    return [json.loads(p.read_text()) for p in sorted(folder.glob("optimizers-throughput-*.json"))]


def _decades(axis: Any) -> None:
    """1, 2, 5, 10, ... on a logarithmic axis."""
    ticker = need("matplotlib.ticker", "pictures")
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(ticker.NullFormatter())


def _plain(axes: Any) -> None:
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Any, path: str | Path, title: str) -> None:
    figure.suptitle(title)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=120)
    need("matplotlib.pyplot", "pictures").close(figure)
