"""What `cc.cost` promises is what the network card counts; TCP adds a few percent, and nothing else travels."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.patience import patience

ROOT = Path(__file__).resolve().parents[2]
PROBE, NETLAB = str(ROOT / "tests" / "launch" / "card_probe.py"), str(ROOT / "launch" / "netlab")
REDUCERS = {"ErrorFeedback(TopK(ratio=0.1))", "TwoPhase(QSGD(bits=4))", "RandK(ratio=0.1)", "Exact()"}
pytestmark = pytest.mark.multi


def in_the_band(card: float, payload: int, messages: int) -> bool:
    """A segment of 1,448 bytes has 66 of headers (4.6 %), fewer with offload; a message costs some more to begin."""
    return payload <= card <= 1.06 * payload + 1000 * messages


def rows(said: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in re.findall(r"COUNT (\{.*\})", said)]


@pytest.mark.parametrize("world", [pytest.param(2, marks=pytest.mark.full), 3])
def test_every_rank_sends_what_the_dry_run_says(world: int) -> None:
    check = subprocess.run([sys.executable, NETLAB, "--check"], capture_output=True, text=True, timeout=patience(20))
    if check.returncode:
        if world > 2:  # no networks can be made here: loopback has to do
            test_two_ranks_on_loopback_send_together_what_the_dry_run_says()
            return
        pytest.skip(check.stderr.strip() or "netlab --check failed")
    command = [sys.executable, NETLAB, "--hosts", str(world), "--rate", "1gbit", "--", sys.executable, PROBE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patience(90))
    assert done.returncode == 0, done.stdout + done.stderr
    found = rows(done.stdout)
    assert len(found) == 4 * world and {row["reducer"] for row in found} == REDUCERS
    for row in found:
        assert row["payload"] > 500_000
        for card in row["card"]:
            assert in_the_band(card, row["payload"], row["messages"]), row


@pytest.mark.full
def test_two_ranks_on_loopback_send_together_what_the_dry_run_says() -> None:
    """Other programs use this card too, so the quietest of three rounds counts."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    common |= {"GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, PROBE, "lo"]
    ranks = [
        subprocess.Popen(command, env={**common, "RANK": rank}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for rank in "01"
    ]
    try:
        said = [rank.communicate(timeout=patience(80))[0].decode() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], said
    for one, other in zip(rows(said[0]), rows(said[1]), strict=True):
        card, payload = min(one["card"] + other["card"]), one["payload"] + other["payload"]
        assert in_the_band(card, payload, one["messages"] + other["messages"]), (one, other)
