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

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = (ROOT / "launch" / "elastic.sh").read_text()
pytestmark = [pytest.mark.multi, pytest.mark.timeout(300)]


def train(workers: int, folder: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """How a run of launch/elastic.py ended, and what it printed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts", "3"]
    job = subprocess.Popen(
        [*command, "--nproc-per-node", str(workers), "launch/elastic.py", "--folder", str(folder), *arguments],
        cwd=ROOT,
        env={**os.environ, **dict(re.findall(r"^export (\w+)=(\w+)", SCRIPT, re.M))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        said, _ = job.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        job.terminate()  # torchrun ends its workers
        said, _ = job.communicate(timeout=15)
        pytest.fail(f"the run took too long:\n{said}")
    assert job.returncode == 0, said
    return json.loads((folder / "end.json").read_text()), said


def test_a_killed_worker_changes_no_bit(tmp_path: Path) -> None:
    """torchrun starts both workers again; they resume from step 10 of 16 and end with the unbroken run's parameters."""
    unbroken, _ = train(2, tmp_path / "a", "--steps=16", "--every=5")
    killed, said = train(2, tmp_path / "b", "--steps=16", "--every=5", "--kill=12")
    assert "failed (exitcode: -9) local_rank: 1" in said
    assert (unbroken["lives"], unbroken["began"], killed["lives"], killed["began"]) == (1, 0, 2, 10)
    for what in ("loss", "parameters", "pending", "steps"):
        assert killed[what] == unbroken[what], what
    assert killed["pending"] > 0.1
    for rank in (0, 1):  # those of the last step and of the one before; unfinished files are gone with their writer
        names = sorted(path.name for path in (tmp_path / "b" / f"rank{rank}of2").iterdir())
        assert names == ["step000015.pt", "step000016.pt"]


@pytest.mark.full
def test_four_workers_then_two_go_on_from_one_file(tmp_path: Path) -> None:
    four, _ = train(4, tmp_path, "--steps=6", "--every=3", "--portable")
    two, said = train(2, tmp_path, "--steps=12", "--every=3", "--portable")
    assert (four["workers"], four["steps"], two["workers"], two["began"], two["steps"]) == (4, 6, 2, 6, 12)
    (began,) = re.findall(r"from step 6, pending (\d+\.\d+)", said)
    assert float(began) == pytest.approx(four["pending"], rel=1e-5)
    assert two["loss"] < four["loss"]
