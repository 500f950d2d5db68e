"""Every test of this folder needs a GPU, and is skipped where torch sees none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.multi.harness import Workers

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests below this folder (the hook is given all)."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="no GPU here: torch.cuda.is_available() is False"))


def _pool(world: int, backend: str) -> Iterator[Workers]:
    workers = Workers(world, backend)
    yield workers
    workers.stop()


@pytest.fixture(scope="session")
def alone() -> Iterator[Workers]:
    """One process over NCCL."""
    yield from _pool(1, "cpu:gloo,cuda:nccl")


@pytest.fixture(scope="session")
def two() -> Iterator[Workers]:
    """Two processes that share the GPU, over Gloo: NCCL wants a GPU for each."""
    yield from _pool(2, "cpu:gloo,cuda:gloo")


@pytest.fixture(scope="session")
def four() -> Iterator[Workers]:
    yield from _pool(4, "cpu:gloo,cuda:gloo")
