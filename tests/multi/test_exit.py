"""The end of a program: no hang, no abort, whether or not the user cleans up, and after an error too.

What is tested is the interpreter's own end, so each rank is a program of its own. They are forks of one process that
has imported torch and done nothing else, since fifteen imports take longer than everything that happens here: a fork
goes on in the main script and ends as any program does.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.multi, pytest.mark.timeout(300)]

FORKS = """
import os, signal, sys, threading, time
import torch, torch.distributed as dist
import torch.nn.parallel
import compcomm as cc
assert threading.active_count() == 1, threading.enumerate()

def fork(count, folder):
    "Number of a fork, whose output goes into files; the process that forks waits for all, and writes how they end."
    children = {}
    for number in range(count):
        child = os.fork()
        if child == 0:
            for stream, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(f"{folder}/{number}.{name}", os.O_WRONLY | os.O_CREAT), stream)
            return number
        children[child] = number
    late = time.monotonic() + 100
    while children and time.monotonic() < late:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child:
            open(f"{folder}/{children.pop(child)}.code", "w").write(str(os.waitstatus_to_exitcode(status)))
        else:
            time.sleep(0.02)
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    os._exit(len(children))
"""

RANKS = """
folder, how = sys.argv[1], sys.argv[2]
rank = fork(3, folder)
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=3)
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Sequential(*[torch.nn.Linear(64, 64) for _ in range(3)]))
reducer = "ErrorFeedback(TwoPhase(SignScale()))" if how != "measures" else "LGreCo(PowerSGD(2), every=12, window=2)"
attachment = cc.attach(model, cc.parse(reducer), timeout=10)
for _ in range(12 if how == "measures" else 3):  # the last step's review measures in the background
    model(torch.randn(4, 64)).sum().backward()
if how == "drops":
    import gc
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
def busy():
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        torch.cat([torch.ones(1000)] * 1000).square().sum()
"""

MEASURES = """
from compcomm.core.background import Background
fork(1, sys.argv[1])
scheduler = threading.Thread(target=lambda: Background(lambda: (busy(), print("measured", flush=True))), daemon=True)
scheduler.start()
scheduler.join()
"""

LATE = """
from compcomm.core.background import Background
from compcomm.transports.worker import Worker
fork(3, sys.argv[1])
class Owner: pass
owner = Owner()
def review():
    time.sleep(0.5)  # the program has ended by now, and waits for the worker
    Background(busy)
Worker(owner, "scheduler").do(review)
"""


def run(folder: Path, program: str, *arguments: str) -> list[tuple[int, str, str]]:
    """How each fork of the program ended: code, output, errors."""
    script = folder / "program.py"
    script.write_text(program)
    done = subprocess.run(
        [sys.executable, str(script), str(folder), *arguments], capture_output=True, text=True, timeout=200
    )
    found = [
        (int(code.read_text()), code.with_suffix(".out").read_text(), code.with_suffix(".err").read_text())
        for code in sorted(folder.glob("*.code"))
    ]
    assert done.returncode == 0, f"{done.returncode} programs hung\n{done.stderr}\n{found}"
    return found


@pytest.mark.parametrize("how", ["cleans", "drops", "raises", "leaves", "measures"])
def test_programs_end(tmp_path: Path, how: str) -> None:
    for rank, (code, out, err) in enumerate(run(tmp_path, FORKS + RANKS, how)):
        if how == "raises":
            assert code == (7 if rank == 1 else 1), err
            assert "the end" not in out
            assert rank == 1 or "TransportError" in err
        else:
            assert "the end" in out, err
            # Without destroy_process_group() torch itself aborts now and then; it must not hang.
            assert code == 0 or how == "leaves", err


def test_a_program_that_ends_while_a_controller_measures_lets_it_finish(tmp_path: Path) -> None:
    """The scheduler's thread, which starts it, is a daemon; a daemon that runs torch when the interpreter goes down
    aborts the process."""
    ((code, out, err),) = run(tmp_path, FORKS + BUSY + MEASURES)
    assert (code, out) == (0, "measured\n"), err


def test_a_program_that_ends_before_a_controller_measures_is_not_held_up(tmp_path: Path) -> None:
    for code, _, err in run(tmp_path, FORKS + BUSY + LATE):
        assert code == 0, err
