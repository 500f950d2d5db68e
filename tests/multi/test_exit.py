"""The end of a program: no hang, no abort, whether or not the user cleans up, and after an error too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.multi, pytest.mark.timeout(120)]

SCRIPT = """
import sys
import torch, torch.distributed as dist
import compcomm as cc
rank, path, how = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=3)
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Sequential(*[torch.nn.Linear(64, 64) for _ in range(3)]))
reducer = "ErrorFeedback(TwoPhase(SignScale()))" if how != "measures" else "LGreCo(PowerSGD(2), every=12, window=2)"
attachment = cc.attach(model, cc.parse(reducer), timeout=10)
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


@pytest.mark.parametrize("how", ["cleans", "drops", "raises", "leaves", "measures"])
def test_programs_end(tmp_path: Path, how: str) -> None:
    script = tmp_path / "program.py"
    script.write_text(SCRIPT)
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(tmp_path / "meet"), how],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(3)
    ]  # fmt: skip
    try:
        for rank, process in enumerate(processes):
            out, err = process.communicate(timeout=60)
            if how == "raises":
                assert process.returncode == (7 if rank == 1 else 1), err
                assert "the end" not in out
                if rank != 1:
                    assert "TransportError" in err
            else:
                assert "the end" in out, err
                # Without destroy_process_group() torch itself aborts now and then; it must not hang.
                assert process.returncode == 0 or how == "leaves", err
    finally:
        for process in processes:
            process.kill()
            process.communicate()


MEASURES = """
import threading, time
import torch
from compcomm.core.background import Background
def work():
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        torch.cat([torch.ones(1000)] * 1000).square().sum()
    print("measured", flush=True)
scheduler = threading.Thread(target=lambda: Background(work), daemon=True)
scheduler.start()
scheduler.join()
"""


def test_a_program_that_ends_while_a_controller_measures_lets_it_finish(tmp_path: Path) -> None:
    """The scheduler's thread, which starts it, is a daemon; a daemon that runs torch when the interpreter goes down
    aborts the process."""
    script = tmp_path / "program.py"
    script.write_text(MEASURES)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "measured\n"), done.stderr


LATE = """
import time
import torch
from compcomm.core.background import Background
from compcomm.transports.worker import Worker
class Owner: pass
owner = Owner()
def review():
    time.sleep(0.5)  # the program has ended by now, and waits for the worker
    end = time.monotonic() + 1.0
    def work():
        while time.monotonic() < end:
            torch.cat([torch.ones(1000)] * 1000).square().sum()
    Background(work)
Worker(owner, "scheduler").do(review)
"""


def test_a_program_that_ends_before_a_controller_measures_is_not_held_up(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(LATE)
    for _ in range(3):
        done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
