"""A Recorder beside a real run of two processes, and the attachment's own table."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.nn.parallel import DistributedDataParallel as DDP

import compcomm as cc
from compcomm.engine.statistics import Report
from compcomm.report import runs

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


def test_a_run_with_a_schedule(two: Workers, tmp_path: Path) -> None:
    reducer = "ErrorFeedback(Steps(TopK(ratio=0.02), {0: 0.5, 10: 0.1}))"
    (said, numbers, choices, _), _ = two.run(records, folder=str(tmp_path), reducer=reducer)
    found = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    stages = [(line["step"], *{*line["choices"].values()}) for line in found if "choices" in line]
    assert stages == [(1, 0.5), (10, 0.1)], "what the next step has"
    assert numbers["choices"] == choices and set(choices.values()) == {0.1}
    assert "setting" in said and "seconds in reviews" not in said
    # What a parameter sends is that of the stage, not of the schedule's end.
    assert 1750 < numbers["parameter_bytes"]["a"] < 1950, "a tenth of 3072 elements, 6 bytes each"


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


def stopped_and_resumed(rank: int, world: int, folder: str) -> Any:
    """Six steps with a checkpoint after the fourth; then a fresh attachment that goes on from there."""
    saved: Any = None
    for steps in (range(6), range(4, 7)):
        model, attachment = hooked(Given(), "ErrorFeedback(TopK(ratio=0.02))")
        if saved is not None:
            attachment.load_state_dict(saved)
        with cc.report.Recorder(folder, attachment, tensorboard=False) as recorder:
            for step in steps:
                model(gradients(rank, step)).backward()
                recorder.step(loss=float(steps.start))
                if step == 3:
                    saved = attachment.state_dict()
        attachment.detach()


def test_a_resumed_run_is_one_run(two: Workers, tmp_path: Path) -> None:
    two.run(stopped_and_resumed, folder=str(tmp_path))
    run = runs.read(tmp_path)
    steps, loss, sent = run.columns("step", "loss", "bytes_sent")
    assert steps.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert loss.tolist() == [0, 0, 0, 0, 4, 4, 4]
    each = np.diff(sent, prepend=0).tolist()  # no gap, and nothing twice: DDP has fewer buckets in its first step
    assert each == [each[0], *each[1:2] * 3, each[0], *each[1:2] * 2] and each[0] < each[1] < 1.1 * each[0]


def phases(rank: int, world: int, folder: str) -> Any:
    model = DDP(Given(), bucket_cap_mb=0.004)
    optimizer = cc.optim.OneBitAdam(model, lr=0.01, freeze=4, timeout=20)
    with cc.report.Recorder(folder, optimizer, tensorboard=False) as recorder:
        for step in range(8):
            optimizer.zero_grad()
            model(gradients(rank, step)).backward()
            optimizer.step()
            recorder.step(loss=1.0)
    optimizer.detach()


def test_an_optimizer_with_two_phases_is_one_run(two: Workers, tmp_path: Path) -> None:
    two.run(phases, folder=str(tmp_path))
    run = runs.read(tmp_path)
    steps, sent = run.columns("step", "bytes_sent")
    assert steps.tolist() == list(range(1, 9))
    each = np.diff(sent)
    assert (each > 0).all() and each[-1] < each[0] / 4


def test_the_report_prints_the_largest_parameters_and_the_rest_in_one_line() -> None:
    names = [f"layer{i}.weight" for i in range(160)]
    report = Report(
        "LGreCo(...)", 2, 10, 100.0, 1000.0, 0.1, 0.1, 0.1, 0, dict.fromkeys(names, 0.5),
        elements={n: i + 1 for i, n in enumerate(names)}, parameter_bytes=dict.fromkeys(names, 7),
        choices=dict.fromkeys(names, 0.01), tunable="density",
    )  # fmt: skip
    said = str(report).splitlines()
    assert len(said) < 25 and max(map(len, said)) < 100
    head = next(i for i, line in enumerate(said) if "density" in line)
    assert said[head + 1].split() == ["layer159.weight", "160", "7", "0.01", "0.5000"]
    rest = next(line.split() for line in said if "148 more" in line)
    assert rest == ["and", "148", "more", f"{148 * 149 // 2:,}", "1,036"]
    assert report.table().row_count == 160
    assert report.as_dict()["choices"]["layer3.weight"] == 0.01 and report.as_dict()["tunable"] == "density"
    assert "parameter" not in str(Report("Exact()", 2, 1, 1.0, 1.0, 0, 0, 0, 0, {"a": None}, elements={"a": 3}))
