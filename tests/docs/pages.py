"""The pages as text: their code, their tables, their headings, their links. And the bytes that they quote."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import compcomm as cc
from compcomm.plan.buckets import cut
from compcomm.plan.cost import traffic
from compcomm.plan.shapes import resnet50

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
OUTSIDE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "benchmarks/RESULTS.md")
PAGES = [*OUTSIDE, *(p.relative_to(ROOT).as_posix() for p in sorted(DOCS.rglob("*.md")))]
"""Paths from the repository's root."""
BUCKETS = cut(resnet50())

_FENCE = re.compile(r"^(?:<!-- needs: (\w+) -->\n)?```(\w*)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(?<!`)!?\[[^\]]*\]\(([^)\s]+)\)")


class Block(NamedTuple):
    """A fenced block: its language, its text, and a package without which it cannot run."""

    language: str
    text: str
    needs: str = ""


def read(path: str) -> str:
    """The page at a path from the root."""
    return (ROOT / path).read_text()


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page."""
    return [Block(m[2], m[3], m[1] or "") for m in _FENCE.finditer(text)]


def code(text: str) -> list[Block]:
    """What a reader would run: Python, and what a difference leaves behind."""
    found: list[Block] = []
    for block in blocks(text):
        if block.language == "python":
            found.append(block)
        elif block.language == "diff":
            kept = [line[1:] for line in block.text.splitlines() if not line.startswith("-")]
            found.append(Block("python", "\n".join(kept) + "\n", block.needs))
    return found


def prose(text: str) -> str:
    """The page without its blocks."""
    return _FENCE.sub("", text)


def links(text: str) -> list[str]:
    """Where a page's links and pictures lead, those to other sites left out."""
    return [target for target in _LINK.findall(prose(text)) if "://" not in target]


def anchors(text: str) -> set[str]:
    """The names of a page's headings, as the site and the repository's host make them."""
    found: set[str] = set()
    for line in prose(text).splitlines():
        if re.match(r"#{1,6} ", line):
            found.add(anchor(line.lstrip("#")))
    return found


def anchor(heading: str) -> str:
    """The name of a heading."""
    return re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading.strip().lower()))


def rows(text: str, header: str) -> list[list[str]]:
    """The cells of the table whose first line begins with ``header``, links taken from them."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(header))
    found: list[list[str]] = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        plain = re.sub(r"\[(`[^`]*`)\]\([^)]*\)", r"\1", line)
        found.append([cell.strip().strip("`") for cell in plain.strip("|").split("|")])
    return found


@lru_cache
def sent(call: str | None, world: int) -> int:
    """Bytes that a rank sends in a step of ResNet-50's shapes, in DDP's buckets; None: DDP without a hook."""
    reducer = None if call is None else cc.settle(cc.parse(call), world)
    return sum(p.sent for bucket in traffic(reducer, BUCKETS, world) for p in bucket)
