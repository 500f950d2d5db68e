"""``python -m compcomm report runs/a runs/b``: a table of recorded runs, and pictures of them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from math import isfinite
from pathlib import Path

from . import history
from .runs import Run, named, read

COLUMNS = {
    "MB/step": ("bytes_sent", 1e-6),
    "ms/step": ("seconds", 1e3),
    "exposed": ("exposed_seconds", 1e3),
    "kernels": ("kernel_seconds", 1e3),
}
"""Sums of which the table shows the mean per step, with the scale; the last two are milliseconds as well."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN", help="folders that a Recorder wrote")
    parser.add_argument("--out", type=Path, help="folder for the pictures (default: that of the first run)")


def main(options: argparse.Namespace) -> int:
    """Prints the table and where the pictures are; 2 where a folder holds no run, or matplotlib is missing."""
    folders: list[Path] = list(dict.fromkeys(options.folders))
    try:
        runs = named([read(folder) for folder in folders], folders)
        empty = [str(folder) for run, folder in zip(runs, folders, strict=True) if not run.steps]
        if empty:
            raise ValueError(f"report: {', '.join(empty)}: no step was recorded yet. Leave it out, or wait for one.")
        print(table(runs))
        for path in draw(runs, options.out or folders[0]):
            print(path)
    except (ValueError, ImportError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def draw(runs: Sequence[Run], folder: Path) -> list[Path]:
    """All pictures that the runs have numbers for."""
    made = [history.losses(runs, folder / "loss.png")]
    for run in runs:
        suffix = "" if len(runs) == 1 else f"-{run.name.replace('/', '-')}"
        made.append(history.choices(run, folder / f"choices{suffix}.png"))
        made.append(history.errors(run, folder / f"errors{suffix}.png"))
    return [path for path in made if path is not None]


def table(runs: Sequence[Run]) -> str:
    """A line per run: steps, the last loss, and per step megabytes, and milliseconds in all, exposed and in kernels."""
    width = max(len("run"), *(len(run.name) for run in runs))
    head = ("steps", "loss", *COLUMNS)
    lines = [f"{'run':<{width}}  " + "  ".join(f"{h:>9}" for h in head) + "  reducer"]
    for run in runs:
        losses = run.columns("loss")[0]
        cells = [f"{run.steps[-1]['step']:,}", f"{losses[-1]:.4f}" if len(losses) else "-"]
        for key, scale in COLUMNS.values():
            value = run.pace(key)
            cells.append("-" if value is None or not isfinite(value) else f"{value * scale:.4g}")
        lines.append(f"{run.name:<{width}}  " + "  ".join(f"{c:>9}" for c in cells) + f"  {run.reducer}")
    return "\n".join(lines)
