"""Pages that lie outside docs/, where a visitor of the repository looks for them, become pages of the site too.

Links are written as files lie in the repository, so that they work there; those that leave docs/ are turned into links
within the site here.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("benchmarks/README.md", "benchmarks/RESULTS.md", "CONTRIBUTING.md", "CHANGELOG.md")
LINK = re.compile(r"(\]\()([^)#\s:]+)((?:#[^)\s]*)?\))")


def place(path: str) -> str:
    """Where a file outside docs/ lies in the site: a README would be its folder's index."""
    return "benchmarks/protocol.md" if path == "benchmarks/README.md" else path


PICTURES = [p.relative_to(ROOT).as_posix() for p in sorted((ROOT / "benchmarks" / "results").glob("*.png"))]
PLACES = {path: place(path) for path in (*PAGES, *PICTURES)}


def on_files(files: Files, config: Any) -> Files:
    for path, uri in PLACES.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    back = {uri: path for path, uri in PLACES.items()}
    here = back.get(page.file.src_uri) or f"docs/{page.file.src_uri}"

    def turned(match: re.Match[str]) -> str:
        path = normpath(PurePosixPath(here).parent / match[2])
        uri = PLACES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if uri is None:
            return match[0]  # mkdocs says that it leads nowhere
        return match[1] + relpath(uri, str(PurePosixPath(page.file.src_uri).parent)) + match[3]

    return LINK.sub(turned, markdown)
