"""What all tests share: hypothesis without deadlines and with fixed seeds, one thread per operator, and, where there is
no GPU, Triton's interpreter (it is chosen once per process, before the first kernel).

Three sizes of the suite: ``--quick`` for daily work (no test that is marked ``multi`` or ``slow``), the default, and
``--full`` with the tests marked ``full``: the whole square of contract cases and checks, every GPU kernel compiled.

Side by side (``-n 2 --dist loadgroup``), a file's tests stay on one worker, and tests that start processes share
another: each of those wants the cores for itself.
"""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "compcomm", deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("compcomm")
GPU = torch.cuda.is_available()
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"
torch.set_num_threads(1)

collect_ignore = [] if GPU else ["gpu"]
PROCESSES = ("tests/multi/", "tests/launch/")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="leave out tests that are slow or start processes")
    parser.addoption("--full", action="store_true", help="with the tests that are marked full")


def pytest_report_header(config: pytest.Config) -> str | None:
    return None if GPU else "tests/gpu: not collected, as torch.cuda.is_available() is False"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        alone = item.nodeid.startswith(PROCESSES) or item.get_closest_marker("multi") is not None
        item.add_marker(pytest.mark.xdist_group("processes" if alone else item.nodeid.partition("::")[0]))
    left_out = set[str]() if config.getoption("full") else {"full"}
    if config.getoption("quick"):
        left_out |= {"multi", "slow"}
    kept = [item for item in items if not any(item.get_closest_marker(mark) for mark in left_out)]
    if len(kept) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
        items[:] = kept
