"""The end of a program: no hang, no abort, whether or not the user cleans up, and after an error too."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fresh import Programs
from tests.patience import patience

pytestmark = pytest.mark.multi

RANKS = """
import sys
import torch, torch.distributed as dist
import compcomm as cc
rank, path, how = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=3)
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Sequential(*[torch.nn.Linear(64, 64) for _ in range(3)]))
reducer = "ErrorFeedback(TwoPhase(SignScale()))" if how != "measures" else "LGreCo(PowerSGD(2), every=12, window=2)"
attachment = cc.attach(model, cc.parse(reducer), timeout=float(sys.argv[4]))
for _ in range(12 if how == "measures" else 3):  # the last step's review measures in the background
    model(torch.randn(4, 64)).sum().backward()
if how == "drops":
    import gc, threading
    before = threading.active_count()
    del attachment, model
    gc.collect()
    assert threading.active_count() < before, threading.enumerate()
if how == "raises" and rank == 1:
    raise SystemExit(7)
if how == "raises":
    model(torch.randn(4, 64)).sum().backward()
if how != "leaves":
    dist.destroy_process_group()
print("the end", flush=True)
"""

BUSY = """
import threading, time
import torch
from compcomm.core.background import Background

def busy():
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        torch.cat([torch.ones(1000)] * 1000).square().sum()
"""

MEASURES = """
scheduler = threading.Thread(target=lambda: Background(lambda: (busy(), print("measured", flush=True))), daemon=True)
scheduler.start()
scheduler.join()
"""

LATE = """
from compcomm.transports.worker import Worker
class Owner: pass
owner = Owner()
def review():
    time.sleep(0.5)  # the program has ended by now, and waits for the worker
    Background(busy)
Worker(owner, "scheduler").do(review)
"""


@pytest.mark.parametrize("how", ["cleans", "drops", "raises", "leaves", "measures"])
def test_programs_end(programs: Programs, tmp_path: Path, how: str) -> None:
    told = str(tmp_path / "meet"), how, str(patience(10))
    begun = [programs.start(RANKS, str(rank), *told, warm=True) for rank in range(3)]
    for rank, (code, out, err) in enumerate([programs.wait(program) for program in begun]):
        if how == "raises":
            assert code == (7 if rank == 1 else 1), err
            assert "the end" not in out
            assert rank == 1 or "TransportError" in err
        else:
            assert "the end" in out, err
            # Without destroy_process_group() torch itself aborts now and then; it must not hang.
            assert code == 0 or how == "leaves", err


def test_a_program_that_ends_while_a_controller_measures_lets_it_finish(programs: Programs) -> None:
    """The scheduler's thread, which starts it, is a daemon; a daemon that runs torch when the interpreter goes down
    aborts the process."""
    code, out, err = programs.run(BUSY + MEASURES, warm=True)
    assert (code, out) == (0, "measured\n"), err


def test_a_program_that_ends_before_a_controller_measures_is_not_held_up(programs: Programs) -> None:
    for program in [programs.start(BUSY + LATE, warm=True) for _ in range(3)]:
        code, _, err = programs.wait(program)
        assert code == 0, err
