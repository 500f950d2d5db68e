"""Processes are started once for the whole folder, and again after a test that kills them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .harness import Workers


def _pool(world: int) -> Iterator[Workers]:
    workers = Workers(world)
    yield workers
    workers.stop()


@pytest.fixture(scope="session")
def two() -> Iterator[Workers]:
    yield from _pool(2)


@pytest.fixture(scope="session")
def three() -> Iterator[Workers]:
    yield from _pool(3)


@pytest.fixture(scope="session")
def four() -> Iterator[Workers]:
    yield from _pool(4)
