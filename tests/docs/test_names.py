"""Every public name is documented once, every method has a page, and the page shows what its docstring says."""

from __future__ import annotations

import inspect
import pkgutil
import re

import compcomm as cc
import compcomm.hosts.lightning
import compcomm.testing

from .pages import DOCS, PAGES, blocks, read

NAMES = [m for path in PAGES for m in re.findall(r"^::: (compcomm[\w.]*)$", read(path), re.MULTILINE)]
SHOWN = re.compile(r"^::: compcomm\.([A-Za-z]+)\n    options:\n      members: \[(.*)\]$", re.MULTILINE)
METHODS = {
    name: made
    for name in cc.__all__
    if inspect.isclass(made := getattr(cc, name))
    and issubclass(made, cc.Compressor | cc.Reducer)
    and made not in (cc.Compressor, cc.Reducer)
}


def test_every_public_name_is_documented_once() -> None:
    due = {f"compcomm.{name}" for name in cc.__all__} | {f"compcomm.optim.{name}" for name in cc.optim.__all__}
    assert due - set(NAMES) == set()
    assert len(NAMES) == len(set(NAMES)), sorted(n for n in set(NAMES) if NAMES.count(n) > 1)


def test_what_is_documented_is_there_and_says_something() -> None:
    for name in NAMES:
        assert inspect.getdoc(pkgutil.resolve_name(name.replace(".", ":", 1))), name


def test_members_that_are_shown_are_there_and_say_something() -> None:
    found = 0
    for path in PAGES:
        listed = re.findall(
            r"^::: compcomm\.([A-Za-z]+)\n    options:\n      members: \[(.*)\]$", read(path), re.MULTILINE
        )
        for name, members in listed:
            if name == "testing":  # a module, which the package does not import by itself
                continue
            owner = getattr(cc, name)
            for member in members.split(", "):
                assert hasattr(owner, member) or member in getattr(owner, "__annotations__", {}), f"{name}.{member}"
                found += 1
    assert found > 40


def test_every_method_has_a_page_with_code_that_makes_it() -> None:
    pages = {p.relative_to(DOCS).as_posix(): p.read_text() for p in (DOCS / "methods").rglob("*.md")}
    for name in METHODS:
        (home,) = [text for text in pages.values() if f"::: compcomm.{name}\n" in text]
        made = [b.text for b in blocks(home) if b.language == "python"]
        assert any(re.search(rf"\bcc\.{name}\(", text) for text in made), f"{name}: its page makes none"


def test_docstrings_say_what_pages_are_for() -> None:
    """Bytes of each compressor; state of each feedback scheme, and what a change of the learning rate does to it."""
    for name, made in METHODS.items():
        said = inspect.getdoc(made) or ""
        if issubclass(made, cc.Compressor):
            assert re.search(r"[Ww]ire", said), f"{name}: what are its bytes?"
        elif made.__module__.startswith("compcomm.feedback"):
            assert "State:" in said and "Learning rate:" in said, f"{name}: what is its state?"
