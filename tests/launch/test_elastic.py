"""Runs that survive: a worker killed by SIGKILL in mid-backward, and another number of workers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fresh import Programs
from tests.patience import patience

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = (ROOT / "launch" / "elastic.sh").read_text()
pytestmark = pytest.mark.multi


# What torchrun does, in a process that has torch already: its agent, with workers that are forks of it.
AGENT = """
import runpy, sys
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
workers, script = int(sys.argv[1]), sys.argv[2]
del sys.argv[1:3]
told = dict(rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0", run_id=sys.argv[2], max_restarts=3, start_method="fork")

def work():
    runpy.run_path(script, run_name="__main__")

elastic_launch(LaunchConfig(1, 1, workers, **told), work)()
"""


def environment() -> dict[str, str]:
    return dict(re.findall(r"^export (\w+)=(\w+)", SCRIPT, re.M))


def train(programs: Programs, folder: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """How a run of launch/elastic.py with two workers ended, and what it printed."""
    told = ["2", str(ROOT / "launch" / "elastic.py"), "--folder", str(folder), *arguments]
    code, out, err = programs.run(AGENT, *told, timeout=120, warm=True, imports=("sklearn.datasets",), **environment())
    assert code == 0, out + err
    return json.loads((folder / "end.json").read_text()), out + err


def torchrun(workers: int, folder: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """The same by the command itself."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts", "3"]
    job = subprocess.Popen(
        [*command, "--nproc-per-node", str(workers), "launch/elastic.py", "--folder", str(folder), *arguments],
        cwd=ROOT,
        env={**os.environ, **environment()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        said, _ = job.communicate(timeout=patience(120))
    except subprocess.TimeoutExpired:
        job.terminate()  # torchrun ends its workers
        said, _ = job.communicate(timeout=patience(15))
        pytest.fail(f"the run took too long:\n{said}")
    assert job.returncode == 0, said
    return json.loads((folder / "end.json").read_text()), said


def test_a_killed_worker_changes_no_bit(programs: Programs, tmp_path: Path) -> None:
    """torchrun starts both workers again; they resume from step 10 of 16 and end with the unbroken run's parameters."""
    unbroken, _ = train(programs, tmp_path / "a", "--steps=16", "--every=5")
    killed, said = train(programs, tmp_path / "b", "--steps=16", "--every=5", "--kill=12")
    assert "rank 1 kills itself in step 12" in said  # the agent names the worker that it saw fail first: either
    assert (unbroken["lives"], unbroken["began"], killed["lives"], killed["began"]) == (1, 0, 2, 10)
    for what in ("loss", "parameters", "pending", "steps"):
        assert killed[what] == unbroken[what], what
    assert killed["pending"] > 0.1
    for rank in (0, 1):  # those of the last step and of the one before; unfinished files are gone with their writer
        names = sorted(path.name for path in (tmp_path / "b" / f"rank{rank}of2").iterdir())
        assert names == ["step000015.pt", "step000016.pt"]


@pytest.mark.full
def test_four_workers_then_two_go_on_from_one_file(tmp_path: Path) -> None:
    four, _ = torchrun(4, tmp_path, "--steps=6", "--every=3", "--portable")
    two, said = torchrun(2, tmp_path, "--steps=12", "--every=3", "--portable")
    assert (four["workers"], four["steps"], two["workers"], two["began"], two["steps"]) == (4, 6, 2, 6, 12)
    (began,) = re.findall(r"from step 6, pending (\d+\.\d+)", said)
    assert float(began) == pytest.approx(four["pending"], rel=1e-5)
    assert two["loss"] < four["loss"]
