"""Labs for the tests of launch/netlab."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.patience import patience

ROOT = Path(__file__).parents[2]
NETLAB, CARD = ROOT / "launch" / "netlab", str(ROOT / "compcomm" / "report" / "network_card.py")
CHECK = subprocess.run([sys.executable, NETLAB, "--check"], capture_output=True, text=True, timeout=patience(20))
lab = pytest.mark.skipif(CHECK.returncode != 0, reason=CHECK.stderr.strip() or "netlab --check failed")


def netlab(*arguments: str, script: str | None = None, timeout: float = 30) -> subprocess.CompletedProcess[str]:
    program = [] if script is None else ["--", sys.executable, "-c", script]
    command = [sys.executable, str(NETLAB), *arguments, *program]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    return subprocess.run(command, capture_output=True, text=True, timeout=patience(timeout), env=environment)


def ends(*arguments: str, rank: int, also: str = "") -> subprocess.CompletedProcess[str]:
    """A lab of which one rank ends with exit code 7, and so the lab, soon; the others say what they were asked, but for
    those that do something else, ``also``."""
    script = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('asked to end', flush=True), os._exit(9)))\n"
        f"if os.environ['RANK'] == '{rank}': time.sleep(0.2); sys.exit(7)\n{also}"
        "time.sleep(60)\n"
    )
    begin = time.monotonic()
    done = netlab(*arguments, script=script)
    assert done.returncode == 7
    assert time.monotonic() - begin < patience(8)
    return done
