"""A megabyte of English for language models, without the network."""

from __future__ import annotations

import ast
import os
import sysconfig
from pathlib import Path
from typing import NamedTuple

FILE = Path("text") / "tinyshakespeare.txt"
_BESIDE = Path(__file__).resolve().parents[3] / "shared" / "data"  # a folder next to the checkout


class Text(NamedTuple):
    """Characters, and where they came from."""

    characters: str
    source: str


def load() -> Text:
    """`$COMPCOMM_DATA/text/tinyshakespeare.txt`, else the same under `../shared/data`, else Python's own manual."""
    roots = [Path(os.environ["COMPCOMM_DATA"])] if os.environ.get("COMPCOMM_DATA") else []
    for root in (*roots, _BESIDE):
        if (root / FILE).is_file():
            return Text((root / FILE).read_text(encoding="utf-8"), FILE.name)
    return python_manual()


def python_manual() -> Text:
    """The language reference that `help()` shows (0.7 million characters, fixed for a version of Python).

    Some distributions package it apart; there, the docstrings of the standard library take its place.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return Text("\n\n".join(_docstrings(Path(sysconfig.get_paths()["stdlib"]))), "docstrings of Python's library")
    return Text("\n\n".join(topics[name] for name in sorted(topics)), "the language reference inside Python")


def _docstrings(library: Path) -> list[str]:
    found: list[str] = []
    for file in sorted(library.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                found.append(ast.get_docstring(node) or "")
    return [text for text in found if text]
