"""``python -m compcomm report runs/a runs/b``: a table of recorded runs, and pictures of them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import history
from .runs import Run, read


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN", help="folders that a Recorder wrote")
    parser.add_argument("--out", type=Path, help="folder for the pictures (default: that of the first run)")


def main(options: argparse.Namespace) -> int:
    """Prints the table and where the pictures are; 2 where a folder holds no run."""
    try:
        runs = [read(folder) for folder in options.folders]
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if not any(run.steps for run in runs):
        print("report: no step was recorded yet.", file=sys.stderr)
        return 2
    print(table(runs))
    folder: Path = options.out or options.folders[0]
    made = [history.losses(runs, folder / "loss.png")]
    for run in runs:
        suffix = "" if len(runs) == 1 else f"-{run.name}"
        made.append(history.choices(run, folder / f"choices{suffix}.png"))
        made.append(history.errors(run, folder / f"errors{suffix}.png"))
    for path in made:
        if path is not None:
            print(path)
    return 0


def table(runs: list[Run]) -> str:
    """A line per run: steps, the last loss, bytes per step, and seconds per step in all, exposed and in kernels."""
    width = max(len("run"), *(len(run.name) for run in runs))
    head = ("steps", "loss", "MB/step", "ms/step", "exposed", "kernels", "reducer")
    lines = [f"{'run':<{width}}  " + "  ".join(f"{h:>9}" for h in head[:-1]) + f"  {head[-1]}"]
    for run in runs:
        last = run.steps[-1] if run.steps else {}
        steps = int(last.get("step", 0)) or 1
        loss = run.series("loss")[1]
        cells = [f"{steps:,}", f"{loss[-1]:.4f}" if loss else "-"]
        for key, scale in (("bytes_sent", 1e-6), ("seconds", 1e3), ("exposed_seconds", 1e3), ("kernel_seconds", 1e3)):
            value = last.get(key)
            cells.append("-" if value is None else f"{value * scale / steps:.4g}")
        reducer = last.get("reducer") or run.about.get("reducer") or "-"
        lines.append(f"{run.name:<{width}}  " + "  ".join(f"{c:>9}" for c in cells) + f"  {reducer}")
    return "\n".join(lines)
