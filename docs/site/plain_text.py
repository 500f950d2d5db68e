"""Docstrings are plain text with formulas: what markdown would take for markup in them is escaped.

Kept as markup: ``literals``, lists, doctests, and the sections that mkdocstrings knows (Args:, Raises:). Tables in
the style of reStructuredText become preformatted text.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

LITERAL = re.compile(r"(``.+?``|`[^`]+`)", re.DOTALL)
TABLE = re.compile(r"^=+( +=+)+\n.*?\n=+( +=+)+$", re.DOTALL | re.MULTILINE)
MARKUP = str.maketrans({"*": r"\*", "<": "&lt;", "[": r"\["})
EMPHASIS = re.compile(r"(?<!\w)_|_(?!\w)")


def escaped(text: str) -> str:
    """``text`` with formulas as they are read."""
    done = ""
    for block in re.split(r"(\n{2,})", text):
        if block.lstrip().startswith(">>>"):
            done += block
        elif TABLE.search(block):
            done += TABLE.sub(lambda m: f"```text\n{m[0]}\n```", block)
        else:
            parts = LITERAL.split(block)
            done += "".join(p if i % 2 else EMPHASIS.sub(r"\_", p.translate(MARKUP)) for i, p in enumerate(parts))
    return done


class PlainText(Extension):
    """Escapes every docstring once."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = escaped(obj.docstring.value)
