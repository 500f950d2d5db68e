"""Which case runs which check. A class's first case runs all of them. Every further case stands for one mode (a bit
width, a norm, a way of rounding, a composition) and runs the cheap checks and some of the costly ones by turns, so that
``turns`` modes of a class have met every check between them. With ``--quick`` the cheap checks run alone; ``--full``
runs the whole square."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pytest


def pairs(
    cases: Mapping[type, Sequence[Any]],
    checks: Iterable[Callable[[Any], None]],
    costly: Iterable[Callable[[Any], None]],
    turns: int,
) -> list[Any]:
    """``pytest.param(case, check)`` of every pair, with the mark that says in which size of the suite it runs."""
    place = {check: i for i, check in enumerate(costly)}
    found: list[Any] = []
    for alike in cases.values():
        for number, case in enumerate(alike):
            for check in checks:
                marks = []
                if check in place:
                    its_turn = number == 0 or (number + place[check]) % turns == 0
                    marks = [pytest.mark.slow if its_turn else pytest.mark.full]
                found.append(pytest.param(case, check, id=f"{case!r}-{check.__name__}", marks=marks))
    return found
