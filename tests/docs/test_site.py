"""The site builds without a warning: no page outside the navigation, no link or anchor into nothing, no broken name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.patience import patience

from .pages import DOCS, ROOT

pytestmark = pytest.mark.slow
MISSING = [name for name in ("mkdocs", "material", "mkdocstrings") if find_spec(name) is None]
needs_tools = pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} not installed: pip install '.[docs]'")


def build(folder: Path, config: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(folder), "-f", str(config)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=patience(110), env=environment)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(folder, ROOT / "mkdocs.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@needs_tools
def test_it_builds_without_warnings_and_has_every_page(site: Path) -> None:
    made = {p.relative_to(site).as_posix() for p in site.rglob("index.html")}
    for page in DOCS.rglob("*.md"):
        name = page.relative_to(DOCS).with_suffix("")
        folder = name.parent if name.name == "index" else name
        assert f"{folder.as_posix()}/index.html".removeprefix("./") in made
    assert {"benchmarks/RESULTS/index.html", "benchmarks/protocol/index.html", "CONTRIBUTING/index.html"} <= made
    assert (site / "benchmarks" / "results" / "quickstart.png").is_file()


@needs_tools
def test_formulas_are_shown_as_they_are_written(site: Path) -> None:
    """Docstrings are plain text: no star or bracket in them is taken for markup."""
    page = (site / "methods" / "compressors" / "cast" / "index.html").read_text()
    assert "delta = 1 - 2**-16" in page
    estimates = (site / "methods" / "feedback" / "ef21" / "index.html").read_text()
    assert "h &lt;- h + c" in estimates
    table = (site / "reference" / "values" / "index.html").read_text()
    assert re.search(r"all-reduce +the compressor is linear", table)
    assert not [p for p in site.rglob("index.html") if "<em>" in p.read_text()], "emphasis that nobody wrote"


@needs_tools
@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[a](nowhere.md) [b](#nothing)", ("nowhere.md", "#nothing", "lost.md")),
        ("::: compcomm.NoSuchName", ("NoSuchName",)),
    ],
)
def test_a_broken_page_would_be_seen(tmp_path: Path, text: str, named: tuple[str, ...]) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# A\n\n{text}\n")
    (tmp_path / "docs" / "lost.md").write_text("# B\n")
    kept = (ROOT / "mkdocs.yml").read_text().partition("nav:\n")[0] + "nav: [index.md]\n"
    kept = kept.replace("hooks: [docs/site/hooks.py]\n", "")
    kept = kept.replace("paths: [.]", f"paths: [{ROOT}]").replace("[docs/site/", f"[{ROOT}/docs/site/")
    (tmp_path / "mkdocs.yml").write_text(kept)
    done = build(tmp_path / "site", tmp_path / "mkdocs.yml")
    assert done.returncode != 0
    assert all(name in done.stdout + done.stderr for name in named), done.stdout + done.stderr
