"""The settings that a method may have: as candidates are given, and by default."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from math import isfinite
from typing import Any

from ..core.compressor import Compressor
from ..core.reducer import Reducer
from ..routes.powersgd import PowerSGD
from .setting import (
    NOUNS,
    field,
    owner,
    setting,
    tuned,
    with_owner,
)


def number(call: str, part: Any, name: str, value: Any) -> float:
    """One candidate, given as a number or as a description.

    Raises:
        ValueError: it is neither, of another method than ``part``, or ``part`` has no such form.
    """
    if isinstance(value, list | tuple | range):
        such = f", such as {name}={value[0]!r}" if value else ""
        raise ValueError(f"{call}({name}={value!r}): one setting{such}.")
    return numbers(call, part, value, name)[0]


def numbers(call: str, part: Any, candidates: Any, name: str = "candidates") -> tuple[float, ...]:
    """Candidates, given as numbers or as descriptions, as settings of ``part``: ascending and each once.

    Raises:
        ValueError: there are none, they are of another method than ``part``, or it has no such form.
    """
    given = tuple(candidates) if isinstance(candidates, list | tuple | range) else (candidates,)
    if not given:
        raise ValueError(f"{call}({name}={candidates!r}): there is nothing to choose from. Give two or more.")
    found: set[float] = set()
    for one in given:
        value = one
        if isinstance(one, Compressor | Reducer):
            mine, base = owner(part), setting(call, part)
            same = owner(one) is one and type(one) is type(mine) and tuned(one, base) == mine
            if not same:
                hint = f"the numbers, such as {name}=(0.001, 0.01, 0.1)"
                if name != "candidates":
                    hint = f"{name} as a number, the {NOUNS[field(part)]} alone"
                raise ValueError(
                    f"{call}({name}=...): {one!r} is of another family than {mine!r}: settings differ in the "
                    f"density, the bits or the rank alone. Give {hint}."
                )
            value = setting(call, one)
        if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
            raise ValueError(f"{call}({name}={candidates!r}): {one!r} is no density, number of bits or rank.")
        try:
            tuned(part, value)
        except ValueError as error:
            raise ValueError(f"{call}({name}={candidates!r}): {value!r} does not serve: {error}") from None
        found.add(value)
    return tuple(sorted(found))


def nearest(settings: Sequence[float], value: float) -> int:
    """The position of the setting that comes nearest."""
    return min(range(len(settings)), key=lambda i: (abs(settings[i] - value), i))


@lru_cache(maxsize=256)
def grid(part: Any) -> tuple[float, ...]:
    """The default candidates: densities of 1/16 to 16 times the one given, 2 to 8 bits, half to twice the rank."""
    base = setting("", part)
    mine = owner(part)
    if mine.tunable == "ratio":
        wanted: list[float] = [base * 2.0**k for k in range(-4, 5)]
    elif mine.tunable == "bits":
        wanted = [*range(2, 9), base]
    else:
        low, high = max(1, int(base) // 2), 2 * int(base)
        step = max(1, -(-(high - low) // 15))
        wanted = [*range(low, high + 1, step), base]
    found: set[float] = set()
    for value in wanted:
        try:
            tuned(part, value)
            found.add(value)
        except ValueError:
            continue
    return tuple(sorted(found))


@lru_cache(maxsize=256)
def roomy(part: Any, settings: tuple[float, ...]) -> Any:
    """``part`` with memory for every setting, and exact where it is exact at its own."""
    mine = owner(part)
    return with_owner(part, replace(mine, most=int(max(settings)))) if isinstance(mine, PowerSGD) else part
