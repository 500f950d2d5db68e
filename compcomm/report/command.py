"""``python -m compcomm report runs/a runs/b``: a table of recorded runs, and pictures of them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from math import isfinite
from pathlib import Path

from . import history
from .runs import Run, common, named, read

COLUMNS = {
    "MB/step": ("bytes_sent", 1e-6),
    "ms/step": ("seconds", 1e3),
    "exposed": ("exposed_seconds", 1e3),
    "kernels": ("kernel_seconds", 1e3),
}
"""Sums of which the table shows the mean per step, with the scale; the last two are milliseconds as well."""

KINDS = {
    "choices": (history.choices, "nothing, such as LGreCo, chose settings there"),
    "errors": (
        history.errors,
        "nothing is fed back there, or none was recorded (Recorder(errors_every=...))",
    ),
}
"""The pictures of a single run, and why a run has none."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN", help="folders that a Recorder wrote")
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for all pictures (default: choices and errors in each run's folder, loss in the one around)",
    )


def main(options: argparse.Namespace) -> int:
    """Prints the table and where the pictures are; 2 where a folder holds no run, cannot be written to, or matplotlib
    is missing."""
    folders: list[Path] = list(dict.fromkeys(options.folders))
    try:
        runs = named([read(folder) for folder in folders], folders)
        empty = [str(folder) for run, folder in zip(runs, folders, strict=True) if not run.steps]
        if empty:
            raise ValueError(f"report: {', '.join(empty)}: no step was recorded yet. Leave it out, or wait for one.")
        print(table(runs))
        for line in draw(runs, folders, options.out):
            print(line)
    except (ValueError, ImportError) as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    return 0


def draw(runs: Sequence[Run], folders: Sequence[Path], out: Path | None) -> list[str]:
    """Draws all pictures that the runs have numbers for; their paths, and why some runs lack what others have.

    Without ``out`` a run's own pictures go into its folder, and that of all runs into the folder around these.
    """
    made = [history.losses(runs, (out or common(folders)) / "loss.png")]
    lacking = {kind: list[str]() for kind in KINDS}
    for run, folder in zip(runs, folders, strict=True):
        suffix = "" if out is None or len(runs) == 1 else f"-{run.name.replace('/', '-')}"
        for kind, (picture, _) in KINDS.items():
            made.append(picture(run, (out or folder) / f"{kind}{suffix}.png"))
            if made[-1] is None:
                lacking[kind].append(run.name)
    why = [f"no picture of {k} for {', '.join(r)}: {KINDS[k][1]}" for k, r in lacking.items() if 0 < len(r) < len(runs)]
    return [*(str(path) for path in made if path is not None), *why]


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
