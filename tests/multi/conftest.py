"""Processes are started once for the whole folder, for pools of all sizes, and again after a test that kills them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .harness import Crew, Workers


@pytest.fixture(scope="session")
def crew() -> Iterator[Crew]:
    made = Crew()
    yield made
    made.stop()


@pytest.fixture(scope="session")
def two(crew: Crew) -> Workers:
    return Workers(2, crew=crew)


@pytest.fixture(scope="session")
def three(crew: Crew) -> Workers:
    return Workers(3, crew=crew)


@pytest.fixture(scope="session")
def four(crew: Crew) -> Workers:
    return Workers(4, crew=crew)
