"""Reads what a ``Recorder`` wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .recorder import RUN, STEPS


@dataclass(frozen=True)
class Run:
    """A run's folder: what it was, and its steps in ascending order, each once."""

    name: str
    about: Mapping[str, Any]
    steps: Sequence[Mapping[str, Any]]

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """(steps, values) of a number, where it was recorded."""
        found = [(s["step"], s[key]) for s in self.steps if s.get(key) is not None]
        return [float(a) for a, _ in found], [float(b) for _, b in found]

    def against(self, across: str, up: str) -> tuple[list[float], list[float]]:
        """Values of two numbers, where both were recorded."""
        found = [(s[across], s[up]) for s in self.steps if s.get(across) is not None and s.get(up) is not None]
        return [float(a) for a, _ in found], [float(b) for _, b in found]

    def tables(self, key: str) -> tuple[list[int], list[Mapping[str, float]]]:
        """(steps, values by parameter) of "choices" or "errors"."""
        found = [(int(s["step"]), s[key]) for s in self.steps if s.get(key)]
        return [a for a, _ in found], [b for _, b in found]


def read(folder: str | Path) -> Run:
    """A run. A last line that was cut short is left out, and of two entries of a step the later one counts.

    Raises:
        ValueError: there is no run in the folder, or a line in the middle is no JSON.
    """
    path = Path(folder)
    file = path / STEPS
    if not file.is_file():
        near = sorted(str(p.parent) for p in path.glob(f"*/{STEPS}")) if path.is_dir() else []
        cure = f"Its runs are {', '.join(near[:4])}." if near else "A Recorder writes one."
        raise ValueError(f"report: {path} has no {STEPS}: no run. {cure}")
    text = file.read_text(encoding="utf-8", errors="replace")
    steps: dict[int, Mapping[str, Any]] = {}
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), 1):
        try:
            entry = json.loads(line)
            steps[int(entry["step"])] = entry
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"report: {file}, line {number} is not what a Recorder writes: {line[:60]!r}.") from None
    about = path / RUN
    known = json.loads(about.read_text(encoding="utf-8")) if about.is_file() else {}
    return Run(path.name, known, [steps[step] for step in sorted(steps)])
