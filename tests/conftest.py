"""What all tests share: hypothesis without deadlines and with fixed seeds, one thread per operator, and, where there is
no GPU, Triton's interpreter (it is chosen once per process, before the first kernel).

Three sizes of the suite: ``--quick`` for daily work (no test that is marked ``multi`` or ``slow``, starts processes or
follows a descent), the default, and ``--full`` with the tests marked ``full``: the whole square of contract cases and
checks, every GPU kernel compiled.

Side by side (``-n 2 --dist loadfile``), a file's tests stay on one worker, and tests that start processes share
another: each of those wants the cores for itself.
"""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

from tests.fresh import Programs
from tests.interpreter import hasten
from tests.patience import patience

settings.register_profile(
    "compcomm", deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("compcomm")
GPU = torch.cuda.is_available()
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"
    hasten()
torch.set_num_threads(1)

collect_ignore = [] if GPU else ["gpu"]
PROCESSES = ("tests/multi/", "tests/launch/")


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    """Runs code in interpreters that have imported torch, and not the package."""
    made = Programs(tmp_path_factory.mktemp("programs"))
    yield made
    made.stop()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="leave out tests that are slow or start processes")
    parser.addoption("--full", action="store_true", help="with the tests that are marked full")


@pytest.hookimpl(tryfirst=True, hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """On a busy machine tests have more time to end: a test's own bound or, where it has none, that of all."""
    if item.config.getoption("timeout", None) is None:
        own = item.get_closest_marker("timeout")
        seconds = own.args[0] if own else float(item.config.getini("timeout") or 120)
        item.add_marker(pytest.mark.timeout(patience(seconds)), append=False)
    yield


def pytest_report_header(config: pytest.Config) -> str | None:
    return None if GPU else "tests/gpu: not collected, as torch.cuda.is_available() is False"


class Groups(LoadScopeScheduling):
    """A worker takes a file, or all tests that start processes."""

    def _split_scope(self, nodeid: str) -> str:
        return "processes" if nodeid.startswith(PROCESSES) else nodeid.partition("::")[0]


def _by_turns(items: list[pytest.Item]) -> list[pytest.Item]:
    """Of tests marked ``turns``, every so manieth case: other tests of the same code meet the rest."""
    seen, kept = Counter[str](), list[pytest.Item]()
    for item in items:
        mark, test = item.get_closest_marker("turns"), item.nodeid.partition("[")[0]
        if mark is None or (seen[test] - mark.kwargs.get("first", 0)) % mark.args[0] == 0:
            kept.append(item)
        seen[test] += 1
    return kept


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    return Groups(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what this size has not. Where workers share, the long group of processes begins first, else last."""
    left_out = set[str]() if config.getoption("full") else {"full"}
    if config.getoption("quick"):
        left_out |= {"multi", "slow"}
    kept = [item for item in items if not any(item.get_closest_marker(mark) for mark in left_out)]
    if config.getoption("quick"):
        kept = [item for item in kept if not item.nodeid.startswith((*PROCESSES, "tests/convergence/"))]
    if not config.getoption("full"):
        kept = _by_turns(kept)
    if len(kept) < len(items):
        chosen = set(kept)
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = sorted(kept, key=lambda item: item.nodeid.startswith(PROCESSES), reverse=hasattr(config, "workerinput"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Ten thousand items and torch's modules stay to the end: the garbage collector need not look at them each time."""
    gc.collect()
    gc.freeze()
