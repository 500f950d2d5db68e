"""Reads what a ``Recorder`` wrote."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from . import journal, run_info

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """A run's folder: what it was, and its steps in ascending order, each once."""

    name: str
    about: Mapping[str, Any]
    steps: Sequence[Mapping[str, Any]]

    @property
    def reducer(self) -> str:
        """As the run ended; "-" where nothing was attached."""
        said = (s["reducer"] for s in reversed(self.steps) if "reducer" in s)
        return next(said, None) or self.about.get("reducer") or "-"

    def columns(self, *keys: str) -> tuple[Array, ...]:
        """Numbers of every step that recorded all of ``keys`` ("step", "seconds", "loss", ...). What was not finite is
        NaN."""
        found = [[s[key] for key in keys] for s in self.steps if all(key in s for key in keys)]
        grid = np.array(found, dtype=np.float64).reshape(len(found), len(keys))
        return tuple(grid.T)

    def pace(self, key: str) -> float | None:
        """A sum's mean growth per step; the first line, which holds what comes before training, only counts where there
        is no other."""
        if not self.steps or key not in self.steps[-1]:
            return None
        steps, values = self.columns("step", key)
        if len(steps) == 1:
            return float(values[0]) / max(1.0, float(steps[0]))
        return float((values[-1] - values[0]) / (steps[-1] - steps[0]))

    def grid(self, key: str) -> tuple[Array, list[str], Array]:
        """(steps, parameters, values) of "choices" or "errors": a row per parameter, in the model's order."""
        found = [s for s in self.steps if s.get(key)]
        present = {n for s in found for n in s[key]}
        order = [n for n in self.about.get("parameters") or () if n in present]
        names = order + sorted(present.difference(order))
        values = np.array([[s[key].get(n, np.nan) for s in found] for n in names], dtype=np.float64)
        return np.array([s["step"] for s in found], dtype=np.float64), names, values.reshape(len(names), len(found))


def read(folder: str | Path) -> Run:
    """A run. See ``journal.read`` for runs that were cut short or restarted.

    Raises:
        ValueError: there is no run in the folder, or it holds what no Recorder wrote.
    """
    path = Path(folder)
    file = path / journal.STEPS
    if not file.is_file():
        near = sorted(str(p.parent) for p in path.glob(f"*/{journal.STEPS}")) if path.is_dir() else []
        hint = f"Its runs are {', '.join(near[:4])}." if near else 'cc.report.Recorder("FOLDER", hook) writes one.'
        raise ValueError(f"report: {path} has no {journal.STEPS}: no run. {hint}")
    return Run(path.resolve().name, run_info.read(path), journal.read(file))


def named(runs: Sequence[Run], folders: Sequence[Path]) -> list[Run]:
    """The runs under names that differ: their folders' own, or paths where two folders have one name."""
    if len({run.name for run in runs}) == len(runs):
        return list(runs)
    paths = [str(folder.resolve()) for folder in folders]
    shared = os.path.commonpath([os.path.dirname(p) for p in paths])
    return [replace(run, name=os.path.relpath(p, shared)) for run, p in zip(runs, paths, strict=True)]


def common(folders: Sequence[Path]) -> Path:
    """Where a picture of all runs goes: the folder that theirs lie in; a single run's own. The first run's where they
    have nothing but the root of the file system in common.

    >>> print(common([Path("runs/a"), Path("runs/b")]), common([Path("runs/a")]))
    runs runs/a
    """
    if len(folders) == 1:
        return folders[0]
    shared = Path(os.path.commonpath([folder.resolve().parent for folder in folders]))
    if shared == Path(shared.anchor):
        return folders[0]
    return shared if any(folder.is_absolute() for folder in folders) else Path(os.path.relpath(shared))
