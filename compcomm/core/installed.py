"""Methods of other people's packages, known by name once they are installed.

A package says what it has in its ``pyproject.toml``, a reducer under "compcomm.reducers":

    [project.entry-points."compcomm.compressors"]
    Theirs = "their_package.theirs:Theirs"

``parse`` looks here for names that are not ours, and so does all that reads descriptions: ``plan``, the command line,
configuration files. Nothing is imported before its name is asked for, so a broken package breaks none but itself.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from importlib.metadata import EntryPoint, distributions, entry_points

GROUPS = ("compcomm.compressors", "compcomm.reducers")


def origin(entry: EntryPoint) -> str:
    """Where an entry comes from, for messages."""
    found = entry.dist
    return f"{found.name} {found.version}" if found else entry.value


def entries(ours: frozenset[str]) -> dict[str, EntryPoint]:
    """What is installed, by name. Where two packages, or one and we, have one name, the first (ours) is taken."""
    found: dict[str, EntryPoint] = {}
    for group in GROUPS:
        for entry in _listed(group):
            if entry.name in ours or (entry.name in found and found[entry.name].value != entry.value):
                _said_once(entry.name, origin(entry), "" if entry.name in ours else origin(found[entry.name]))
            else:
                found[entry.name] = entry
    return found


def _listed(group: str) -> list[EntryPoint]:
    try:
        return list(entry_points(group=group))
    except Exception:  # one package's file is no text: the others are looked at one by one
        found: list[EntryPoint] = []
        for package in distributions():
            try:
                found += package.entry_points.select(group=group)
            except Exception as error:
                _said_broken(str(package.metadata["Name"]), f"{type(error).__name__}: {error}")
        return found


@lru_cache(maxsize=256)
def _said_broken(package: str, error: str) -> None:
    warnings.warn(
        f"the entry points of {package} cannot be read, so none of its methods is known: {error}", UserWarning, 2
    )


@lru_cache(maxsize=256)
def _said_once(name: str, package: str, other: str) -> None:
    first = f"that of {other}" if other else "ours"
    warnings.warn(f"{package} has a {name}, a name that is taken: {name} stays {first}.", UserWarning, 2)


def load(name: str, entry: EntryPoint) -> type:
    """The class of an entry.

    Raises:
        ValueError: it cannot be imported, or is no class of that name; it says whose it is.
    """
    whose = f"{name} is of the installed package {origin(entry)} ({entry.group}: {entry.value})"
    try:
        made = entry.load()
    except (Exception, SystemExit) as error:  # whatever a stranger's module raises
        raise ValueError(f"{whose}, which fails to load: {type(error).__name__}: {error}") from error
    if not isinstance(made, type) or made.__name__ != name:
        raise ValueError(f"{whose}, which is {made!r} and no class {name}: an entry has the name of its class.")
    return made
