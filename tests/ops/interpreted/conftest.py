"""Without a compiler there are no CUDA kernels for the host: their own files are not collected. What Triton's
interpreter runs is slow."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ops.interpreted.agreement import in_cuda

collect_ignore_glob = [] if in_cuda() else ["test_cuda_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent and "cuda" not in item.name:
            item.add_marker(pytest.mark.slow)
