"""A file of JSON lines that survives its writer: whole lines or none, and a run that went back and on again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

STEPS = "steps.jsonl"
"""What the file is called in a run's folder."""

Entry = Mapping[str, Any]
"""What a line holds: "step", an integer, and whatever else."""


class Journal:
    """Appends entries, each flushed; what a writer before was killed in the middle of is cut off first."""

    def __init__(self, path: Path) -> None:
        if path.exists():
            with path.open("r+b") as file:
                file.truncate(file.read().rfind(b"\n") + 1)
        self._file = path.open("a", encoding="utf-8")

    def write(self, entry: Entry) -> None:
        self._file.write(json.dumps(entry, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read(path: Path) -> list[Entry]:
    """The entries by ascending step.

    A line without its end is left out. Where steps go back, a run was restarted from a checkpoint (or anew), and what
    the earlier attempt had from that step on did not happen to the model that goes on: it is dropped.

    Raises:
        ValueError: a whole line is no entry.
    """
    found: list[Entry] = []
    text = path.read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text[: text.rfind("\n") + 1].split("\n")[:-1], 1):
        entry: Any = None
        with suppress(ValueError):
            entry = json.loads(line)
        if not _fits(entry):
            raise ValueError(f"{path}, line {number} is not what a Recorder writes: {line[:60]!r}. Remove that line.")
        while found and found[-1]["step"] >= entry["step"]:
            found.pop()
        found.append(entry)
    return found


def _fits(entry: Any) -> bool:
    """Whether it is an entry: an integer step, numbers by parameter where tables are, and numbers; null may be any."""
    if not isinstance(entry, dict) or type(entry.get("step")) is not int:
        return False
    return all(_has(key, value) for key, value in entry.items())


def _has(key: str, value: Any) -> bool:
    if value is None:
        return True
    if key == "reducer":
        return isinstance(value, str)
    if key in ("choices", "errors"):
        return isinstance(value, dict) and all(one is None or type(one) in (int, float) for one in value.values())
    return type(value) in (int, float)
