"""Which case runs which check. Cheap checks of a case are one test. A class's first case runs all others too, each in a
test of its own. Every further case stands for one mode (a bit width, a norm, a way of rounding, a composition) and runs
some of the costly checks by turns, so that ``turns`` modes of a class have met every check between them. With
``--quick`` the cheap checks run alone; ``--full`` runs the whole square."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pytest

from compcomm.testing import ContractError

Check = Callable[[Any], None]


def pairs(cases: Mapping[type, Sequence[Any]], checks: Iterable[Check], costly: Sequence[Check], turns: int) -> Any:
    """For a test of ``case`` and ``checks``, with the marks that say in which size of the suite it runs."""
    cheap = [check for check in checks if check not in costly]
    found: list[Any] = []
    for alike in cases.values():
        for number, case in enumerate(alike):
            found.append(pytest.param(case, cheap, id=f"{case!r}-cheap"))
            for place, check in enumerate(costly):
                its_turn = number == 0 or (number + place) % turns == 0
                mark = pytest.mark.slow if its_turn else pytest.mark.full
                found.append(pytest.param(case, [check], id=f"{case!r}-{check.__name__}", marks=mark))
    return pytest.mark.parametrize(("case", "checks"), found)


def hold(case: Any, checks: Iterable[Check]) -> None:
    """All checks run; those that fail are named."""
    broken: list[str] = []
    for check in checks:
        try:
            check(case)
        except ContractError as error:
            broken.append(f"{check.__name__}: {error}")
    assert not broken, "\n".join(broken)
