"""Checkpoint files: whole or not there, whatever kills the writer, and clear about what they are not."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch

import compcomm as cc
from compcomm.state import checkpoint
from tests.fresh import Programs
from tests.patience import patience

STATE = {"hook": {"rank 0 of 1": {"step": 3, "slots": {"residual": {"w": torch.arange(5000.0)}}}}, "epoch": 2}

WRITER = """
import sys, torch
from compcomm import checkpoint
path, big = sys.argv[1], torch.zeros(8_000_000)
for version in range(1, 1000):
    checkpoint.save(path, {"version": version, "big": big + version})
    print(version, flush=True)
"""


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "state.pt"
    checkpoint.save(path, STATE)
    checkpoint.save(str(path), {**STATE, "epoch": 3})
    found = checkpoint.load(path)
    assert found["epoch"] == 3
    slots = found["hook"]["rank 0 of 1"]["slots"]
    assert torch.equal(slots["residual"]["w"], torch.arange(5000.0))
    assert [p.name for p in path.parent.iterdir()] == ["state.pt"], "nothing is left beside it"


@pytest.mark.slow
def test_a_kill_in_the_middle_of_writing_leaves_the_old_file(programs: Programs, tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    cut = 0
    for attempt in range(3):
        writer, deadline = programs.start(WRITER, str(path)), time.monotonic() + patience(60)
        while len(said := programs.output(writer).split()) <= attempt and time.monotonic() < deadline:
            time.sleep(0.01)
        last, part = int(said[-1]), tmp_path / f".state.pt.{writer}.part"
        while time.monotonic() < deadline:
            try:
                if 0 < part.stat().st_size < 30_000_000:
                    break
            except FileNotFoundError:
                pass
        os.kill(writer, signal.SIGKILL)
        assert programs.wait(writer).returncode == -signal.SIGKILL
        if part.exists():
            cut += part.stat().st_size < 32_000_000
            with pytest.raises(cc.StateError, match=r"cut short or damaged|it is empty"):
                checkpoint.load(part)
        found = checkpoint.load(path)
        assert found["version"] >= last
        assert found["big"].eq(found["version"]).all()
    assert cut, "no attempt met the writer at work: the test shows nothing"


def test_a_file_cut_short_says_so(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    checkpoint.save(path, STATE)
    content = path.read_bytes()
    short = tmp_path / "short.pt"
    for length in (0, 1, 2, 3, 4, 10, 31, 100, 1000, *range(2000, len(content), 3001), len(content) - 1):
        short.write_bytes(content[:length])
        with pytest.raises(cc.StateError) as caught:
            checkpoint.load(short)
        message = str(caught.value)
        assert str(short) in message
        assert f"it has {length} bytes" in message
        assert "Use an older checkpoint" in message
        assert ("is empty" in message) == (length == 0)
        assert length < 2 or "cut short or damaged" in message


def test_what_is_no_checkpoint_says_so(tmp_path: Path) -> None:
    text, objects = tmp_path / "notes.txt", tmp_path / "objects.pt"
    text.write_text("loss 1.5\nloss 1.4\n")
    torch.save({"reducer": cc.TopK(ratio=0.01)}, objects)
    with pytest.raises(cc.StateError, match=r"notes.txt'\): it is no checkpoint"):
        checkpoint.load(text)
    with pytest.raises(cc.StateError, match="neither tensor, number, string nor a container"):
        checkpoint.load(objects)
    with pytest.raises(cc.StateError, match="No such file"):
        checkpoint.load(tmp_path / "none.pt")
    with pytest.raises(cc.StateError, match="not a file"):
        checkpoint.load(tmp_path)


def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    checkpoint.save(path, STATE)
    with pytest.raises(Exception, match=r"pickle|lambda"):
        checkpoint.save(path, {"w": torch.zeros(5), "function": lambda: None})
    assert checkpoint.load(path)["epoch"] == 2
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt"]
