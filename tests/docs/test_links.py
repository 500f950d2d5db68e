"""Links, pictures and anchors lead somewhere, as files lie in the repository; what commands name is there."""

from __future__ import annotations

import argparse
import re
import shlex

import pytest

from compcomm.plan import command as plan
from compcomm.report import command as report

from .pages import DOCS, PAGES, ROOT, anchors, blocks, links, read


@pytest.mark.parametrize("path", PAGES)
def test_links_lead_somewhere(path: str) -> None:
    for link in links(read(path)):
        target, _, anchor = link.partition("#")
        file = (ROOT / path).parent / target if target else ROOT / path
        assert file.is_file(), f"{link}: there is no {target}"
        if anchor:
            assert anchor in anchors(file.read_text()), f"{link}: no such heading"


@pytest.mark.parametrize("path", PAGES)
def test_files_that_are_named_are_there(path: str) -> None:
    if path == "CHANGELOG.md":
        return  # it names what was
    for name in re.findall(r"`((?:compcomm|csrc|tests|benchmarks|launch|docs)/[\w/.-]+)`", read(path)):
        if "NAME" not in name:
            assert (ROOT / name).exists(), name


@pytest.mark.parametrize("path", PAGES)
def test_commands_can_be_given(path: str) -> None:
    for block in blocks(read(path)):
        for line in block.text.splitlines() if block.language == "bash" else ():
            words = shlex.split(line, comments=True)
            scripts = [w for w in words if re.match(r"(launch|benchmarks)/[\w.-]+$", w)]
            assert all((ROOT / script).is_file() for script in scripts), line
            if "compcomm" in words:
                which, *options = words[words.index("compcomm") + 1 :]
                parser = argparse.ArgumentParser(exit_on_error=False)
                {"plan": plan, "report": report}[which].arguments(parser)
                parser.parse_args(options)


def test_a_reader_of_the_readme_finds_every_page() -> None:
    """From the README, by links alone."""
    found, ahead = set[str](), ["README.md"]
    while ahead:
        path = ahead.pop()
        if path in found:
            continue
        found.add(path)
        for link in links(read(path)):
            target = ((ROOT / path).parent / link.partition("#")[0]).resolve()
            if target.suffix == ".md":
                ahead.append(target.relative_to(ROOT).as_posix())
    pages = {p.relative_to(ROOT).as_posix() for p in DOCS.rglob("*.md")}
    assert {p for p in pages if not p.startswith("docs/reference/")} - found == set()


def test_a_broken_link_would_be_seen() -> None:
    text = "# Some title, `code`\n\n[a](no.md) ![b](c.png) `[x](y)`\n\n```text\n[n](o)\n```\n"
    assert links(text) == ["no.md", "c.png"] and anchors(text) == {"some-title-code"}
