"""The code on the pages runs, page by page, among two workers.

Beside what a page shows, it has the names that ``docs/index.md`` lists. Before a block that makes a host, ``model`` is
a new DDP model: one takes one hook for good.
"""

from __future__ import annotations

import re
import sys
import traceback
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

import compcomm as cc
from compcomm import testing

from ..docs.pages import PAGES, code, read
from .harness import Workers
from .test_frameworks import launched

pytestmark = pytest.mark.multi

HOSTS = re.compile(r"attach\(|register_comm_hook|cc\.optim\.")
MODEL = re.compile(r"\b(net|model|optimizer)\b")
RUN = [path for path in PAGES if code(read(path))]


def room_of(path: str) -> str:
    """The pages of a folder run one after the other, in one process group."""
    return str(PurePosixPath(path).parent)


def fresh(names: dict[str, Any]) -> None:
    """A module, its DDP model and an optimizer."""
    torch.manual_seed(0)
    names["net"] = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    names["model"] = DDP(names["net"])
    names["optimizer"] = torch.optim.SGD(names["model"].parameters(), lr=0.01)


def run(rank: int, world: int, pages: dict[str, list[str]], folder: str) -> dict[str, str]:
    """What went wrong, by page."""
    failed: dict[str, str] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("check_compressor", "check_reducer") if rank else ():  # contracts are no matter of several ranks
            patch.setattr(testing, name, lambda *_, **__: None)
        for path, blocks in pages.items():
            try:
                frameworks = any(re.search(r"^from (lightning|accelerate)", text, re.MULTILINE) for text in blocks)
                with launched(rank, world) if frameworks else nullcontext():
                    run_page(rank, blocks)
            except Exception:
                failed[path] = traceback.format_exc()
    return failed


def run_page(rank: int, blocks: list[str]) -> None:
    torch.manual_seed(rank)
    page = ModuleType("page")
    sys.modules["page"] = page  # dataclasses look their module up
    names = page.__dict__
    batches = [(torch.randn(16, 64), torch.randn(16, 8)) for _ in range(3)]
    names.update(cc=cc, torch=torch, DDP=DDP, rank=rank, batches=batches, loss_of=nn.functional.mse_loss)
    names["reducer"] = cc.ErrorFeedback(cc.TopK(ratio=0.1))
    for number, text in enumerate(blocks):
        if HOSTS.search(text) or ("net" not in names and MODEL.search(text)):
            fresh(names)
        exec(compile(text, f"block {number + 1}", "exec"), names)
    for found in list(names.values()):
        if isinstance(found, cc.Attachment):
            found.detach()


@pytest.mark.parametrize("room", sorted({room_of(path) for path in RUN}))
def test_the_code_runs(two: Workers, room: str, tmp_path: Path) -> None:
    pages: dict[str, list[str]] = {}
    for path in (p for p in RUN if room_of(p) == room):
        found = code(read(path))
        missing = {b.needs for b in found if b.needs and find_spec(b.needs) is None}
        if not missing:  # Lightning, Accelerate: tests/multi/test_frameworks.py says that they are not there
            pages[path] = [b.text for b in found]
    failed = two.run(run, pages=pages, folder=str(tmp_path), timeout=110)[0]
    assert not failed, "\n".join(f"{path}: {why}" for path, why in failed.items())


def test_a_block_that_fails_would_be_seen(two: Workers, tmp_path: Path) -> None:
    pages = {"good": ["x = 1\n"], "bad": ["y = 1\n", "cc.no_such_name\n"]}
    failed = two.run(run, pages=pages, folder=str(tmp_path))[0]
    assert set(failed) == {"bad"} and "block 2" in failed["bad"] and "no_such_name" in failed["bad"]
