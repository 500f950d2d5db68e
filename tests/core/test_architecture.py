"""The house as imports draw it: rooms in floors, no import that runs up, no circle.

Read from the sources, so that imports inside functions and for typing count too.
"""

from __future__ import annotations

import ast
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

import compcomm as cc
from compcomm.core.renamed import MODULES
from tests.fresh import Programs

PACKAGE = Path(cc.__file__).parent
# Lowest first. A file imports from its own room and from those before it.
FLOORS = (
    *("_version", "ops", "core", "state", "compressors", "routes", "combine", "feedback", "adaptive", "transports"),
    *("engine", "hosts", "optim", "report", "plan", "testing", "__main__"),
)
LOOSE = {"__init__.py", "__main__.py", "_version.py", "py.typed"}


def modules() -> dict[str, Path]:
    """Every module of the package, named without ``compcomm.``; a room's ``__init__`` has the room's name."""
    found: dict[str, Path] = {}
    for file in PACKAGE.rglob("*.py"):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


ALL = modules()


def imports(name: str) -> Iterator[str]:
    """What a module imports from the package, anywhere in it."""
    file = ALL[name]
    room = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [*room[: len(room) - node.level + 1], *([node.module] if node.module else [])]
            found = [".".join(["compcomm", *base, alias.name]) for alias in node.names]
        else:
            continue
        for full in found:
            head, _, rest = full.partition(".")
            if head == "compcomm":
                yield rest if rest in ALL else rest.rpartition(".")[0]


@cache
def graph() -> dict[str, set[str]]:
    return {name: {other for other in imports(name) if other != name} for name in ALL if name}


def floor(name: str) -> int:
    return FLOORS.index(name.split(".")[0])


def test_four_files_lie_loose() -> None:
    assert {f.name for f in PACKAGE.iterdir() if f.is_file()} == LOOSE


def test_every_room_has_a_floor_and_says_what_it_is() -> None:
    rooms = {f.name for f in PACKAGE.iterdir() if (f / "__init__.py").exists()}
    assert rooms == set(FLOORS) - {"_version", "__main__"}
    for room in sorted(rooms):
        assert ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text())), f"{room}: what is in it?"


def test_no_import_runs_up() -> None:
    up = {(a, b) for a, others in graph().items() for b in others if b and floor(b) > floor(a)}
    assert up == set(), "a lower room may not know a higher one: hand the thing in, or move it down"


@pytest.mark.slow
def test_a_first_import_loads_no_planner(programs: Programs) -> None:
    code = "import sys, compcomm; print([m for m in sys.modules if m.startswith('compcomm.plan')])"
    done = programs.run(code)
    assert done.stdout.strip() == "[]", done.stderr


def test_nothing_imports_the_package_root() -> None:
    assert [name for name, others in graph().items() if "" in others and name != "__main__"] == []


def test_no_circles() -> None:
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("old", sorted(MODULES))
def test_a_module_that_has_moved_is_found_by_its_old_name(old: str) -> None:
    new = MODULES[old]
    assert old.removeprefix("compcomm.") not in ALL and new.removeprefix("compcomm.") in ALL
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # once a process: another test may have seen it
        assert import_module(old) is import_module(new)
    assert import_module(new).__name__ == new


def test_the_old_name_warns_and_says_the_new_one() -> None:
    with pytest.warns(FutureWarning, match=r"compcomm.rng is now compcomm.core.random"):
        sys.modules.pop("compcomm.rng", None)
        import_module("compcomm.rng")
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = cc.nothing  # pyright: ignore[reportAttributeAccessIssue]


MEMBERS = {
    ("core/reducer.py", "Reducer"): 8,
    ("core/compressor.py", "Compressor"): 12,
    ("core/rows.py", "Rows"): 6,
    ("core/format.py", "Format"): 8,
    ("core/transport.py", "Transport"): 8,
    ("engine/session.py", "Session"): 12,
}
"""Public members of the contracts: what somebody who writes one must know. Before adding one, try to remove one."""


@pytest.mark.parametrize(("file", "name"), MEMBERS)
def test_contracts_stay_small(file: str, name: str) -> None:
    tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
    found = next(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == name)
    members = {node.name for node in found.body if isinstance(node, ast.FunctionDef)}
    members |= {n.target.id for n in found.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
    public = sorted(m for m in members if not m.startswith("_"))
    assert len(public) <= MEMBERS[file, name], public
