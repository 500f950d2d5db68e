"""A Recorder beside a real run of two processes, and the attachment's own table."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import compcomm as cc

from . import models
from .given import Given, gradients, hooked
from .harness import Workers

pytestmark = pytest.mark.multi


def records(rank: int, world: int, folder: str, reducer: str) -> Any:
    model, attachment = hooked(Given(), reducer, seed=3)
    with cc.report.Recorder(folder, attachment, tensorboard=False, errors_every=5) as recorder:
        for step in range(20):
            loss = model(gradients(rank, step))
            loss.backward()
            recorder.step(loss=loss)
    return str(attachment.report()), attachment.report().as_dict(), attachment.choices(), attachment.counters()


def test_a_run_with_a_controller(two: Workers, tmp_path: Path) -> None:
    reducer = "LGreCo(ErrorFeedback(TopK(ratio=0.02)), every=6)"
    (said, numbers, choices, counters), _ = two.run(records, folder=str(tmp_path), reducer=reducer)
    found = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert [line["step"] for line in found] == list(range(1, 21))
    assert found[-1]["bytes_sent"] == counters.bytes_sent
    assert all(a["bytes_sent"] < b["bytes_sent"] for a, b in pairwise(found))
    decisions = [line for line in found if "choices" in line]
    assert decisions[0]["step"] == 1
    assert decisions[-1]["choices"] == choices
    assert [line["step"] for line in found if "errors" in line] == [5, 10, 15, 20]
    assert set(found[4]["errors"]) == {"a", "b", "d", "e"}
    about = json.loads((tmp_path / "run.json").read_text())
    assert about["world"] == 2 and about["parameters"]["a"] == 64 * 48
    # The table: the largest parameter first, with its bytes, setting and error.
    assert numbers["choices"] == choices and numbers["review_seconds"] > 0
    rows = [line.split() for line in said.splitlines() if line.split()[0] in choices]
    assert rows[0][0] == "a" and rows[0][1] == "3,072" and float(rows[0][3]) == pytest.approx(choices["a"], rel=1e-3)
    assert int(rows[0][2].replace(",", "")) == numbers["parameter_bytes"]["a"]


def plain(rank: int, world: int, folder: str) -> Any:
    state = cc.DDPState(cc.TopK(ratio=0.02), timeout=20)
    model, _ = models.wrap(Given())
    model.register_comm_hook(state, cc.ddp_hook)
    with cc.report.Recorder(folder, state, tensorboard=False) as recorder:
        for step in range(3):
            model(gradients(rank, step)).backward()
            recorder.step()
    return len((Path(folder) / "steps.jsonl").read_text().splitlines())


def test_with_pytorchs_own_form_of_the_hook(two: Workers, tmp_path: Path) -> None:
    assert two.run(plain, folder=str(tmp_path))[0] == 3
