"""What a Recorder writes: lines that a killed run leaves whole, and sums that go on in the next one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import compcomm as cc
from compcomm.engine.statistics import Counters
from compcomm.report.totals import Sums
from tests.fresh import Programs


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


def quiet(folder: Path, attachment: Any = None, **options: Any) -> cc.report.Recorder:
    return cc.report.Recorder(folder, attachment, tensorboard=False, **options)


class Attached:
    """Stands for an attachment of one step: 100 bytes and a tenth of a second in kernels each."""

    def __init__(self, step: int = 0) -> None:
        self.number = self.first = step
        self.reducer = cc.AllGather(cc.TopK(ratio=0.01))
        self.elements = {"w": 100}
        self.dense_bytes = 400
        self.wire = SimpleNamespace(world=2, rank=0)
        self.asked = 0
        self.reviewed = 0.0
        self.chosen: dict[str, float] = {}

    def counters(self) -> Counters:
        n = self.number - self.first
        return Counters(self.number, n, 100 * n, 0.1 * n, 0.0, 0.0, self.reviewed, bool(self.chosen))

    def scheduled(self) -> dict[str, float]:
        return {}

    def choices(self) -> dict[str, float]:
        self.asked += 1
        return dict(self.chosen)

    def errors(self) -> dict[str, float | None]:
        return {"w": 0.5, "b": None}


def test_scalars_alone(tmp_path: Path) -> None:
    with quiet(tmp_path / "new" / "a") as record:
        for step in range(3):
            record.step(loss=torch.tensor(2.0 - step), accuracy=step / 2, nothing=None)
    found = lines(tmp_path / "new" / "a")
    assert [(line["step"], line["loss"], line["accuracy"]) for line in found] == [(1, 2, 0), (2, 1, 0.5), (3, 0, 1)]
    assert all("nothing" not in line for line in found)
    assert found[0]["seconds"] < found[2]["seconds"]
    about = json.loads((tmp_path / "new" / "a" / "run.json").read_text())
    assert about["torch"] == torch.__version__ and about["compcomm"] == cc.__version__


def test_every_and_numbers_that_are_none(tmp_path: Path) -> None:
    with quiet(tmp_path, every=2) as record:
        for _ in range(5):
            record.step(loss=float("nan"), other=float("inf"))
    assert [(line["step"], line["loss"], line["other"]) for line in lines(tmp_path)] == [
        (2, None, None),
        (4, None, None),
    ]


def test_an_attachments_numbers(tmp_path: Path) -> None:
    hook = Attached()
    with quiet(tmp_path, hook, every=2, errors_every=3) as record:
        for _ in range(8):
            hook.number += 1
            record.step()
    found = lines(tmp_path)
    assert [(line["step"], line["bytes_sent"]) for line in found] == [(2, 200), (4, 400), (6, 600), (8, 800)]
    assert {line["ratio"] for line in found} == {2 * (400 // 2) / 100}
    assert found[-1]["kernel_seconds"] == pytest.approx(0.8)
    assert [line.get("reducer") for line in found] == ["AllGather(TopK(ratio=0.01))", None, None, None]
    assert [line.get("errors") for line in found] == [None, {"w": 0.5}, None, {"w": 0.5}]
    assert all("choices" not in line for line in found)
    assert json.loads((tmp_path / "run.json").read_text())["parameters"] == {"w": 100}


def test_choices_are_asked_for_after_a_review_and_written_where_they_changed(tmp_path: Path) -> None:
    hook = Attached()
    hook.chosen = {"w": 0.1}
    with quiet(tmp_path, hook) as record:
        for step in range(1, 10):
            hook.number = step
            if step in (4, 7):
                hook.reviewed += 0.01
            if step == 7:
                hook.chosen = {"w": 0.2}
            record.step()
    assert hook.asked == 3
    assert {line["step"]: line["choices"] for line in lines(tmp_path) if "choices" in line} == {
        1: {"w": 0.1}, 7: {"w": 0.2}
    }  # fmt: skip


def test_what_was_sent_before_the_recorder_is_not_of_the_run(tmp_path: Path) -> None:
    hook = Attached()
    hook.number = 50
    with quiet(tmp_path, hook) as record:
        hook.number += 1
        record.step()
    assert [(line["step"], line["bytes_sent"]) for line in lines(tmp_path)] == [(51, 100)]


def test_sums_go_on_where_the_counters_begin_anew() -> None:
    sums, first, second = Sums(), Attached(), Attached()
    first.number = 5
    assert sums.take(first, first.counters()).steps == 5
    first.number = first.first = 3  # a checkpoint of step 3
    first.number = 4
    assert sums.take(first, first.counters()).steps == 1
    assert sums.totals["bytes_sent"] == 600
    first.number, second.number = 6, 9  # an optimizer's next phase, past what the first had counted, which went on
    assert sums.take(second, second.counters()).steps == 11
    assert sums.totals["bytes_sent"] == 1700 and isinstance(sums.totals["bytes_sent"], int)


def test_a_run_that_was_killed_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    hook = Attached()
    with quiet(tmp_path, hook) as record:
        for _ in range(6):
            hook.number += 1
            record.step(loss=1.0)
    file = tmp_path / "steps.jsonl"
    file.write_text(file.read_text()[:-20])  # killed in the middle of a line
    resumed = Attached(step=3)
    with quiet(tmp_path, resumed) as record:
        resumed.number += 1
        record.step(loss=2.0)
        resumed.number += 1
        record.step(loss=2.0)
    found = lines(tmp_path)
    assert [(line["step"], line["bytes_sent"]) for line in found] == [
        (1, 100), (2, 200), (3, 300), (4, 400), (5, 500), (4, 400), (5, 500)
    ]  # fmt: skip
    assert found[5]["seconds"] > found[2]["seconds"]
    assert found[5]["reducer"] == "AllGather(TopK(ratio=0.01))"


def test_a_step_has_the_number_that_is_given(tmp_path: Path) -> None:
    with quiet(tmp_path) as record:
        record.step(loss=1.0, at=1000)
    assert lines(tmp_path)[0]["step"] == 1000


def test_only_rank_0_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    with quiet(tmp_path / "a") as record:
        record.step(loss=1.0)
    assert not (tmp_path / "a").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, loss in ((0, 3.0), (2, 7.0)):  # the second attempt goes on from step 2, and replaces step 3
        hook = Attached(step=first)
        hook.chosen = {"w": 0.25}
        with cc.report.Recorder(tmp_path, hook, tensorboard=True, errors_every=2) as record:
            for _ in range(3):
                hook.number += 1
                record.step(loss=loss)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 3), (2, 3), (3, 7), (4, 7), (5, 7)]
    assert [e.value for e in events.Scalars("bytes_sent")] == [100, 200, 300, 400, 500]
    assert {e.value for e in events.Scalars("per step/bytes_sent")} == {100} and events.Scalars("ratio")[0].value == 4
    assert events.Scalars("choices/w")[0].value == 0.25 and events.Scalars("errors/w")[0].step == 2


def test_without_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with cc.report.Recorder(tmp_path) as record:
        record.step(loss=3.0)
    assert len(lines(tmp_path)) == 1
    with pytest.raises(
        ImportError, match=r"Recorder\(tensorboard=True\): tensorboard is not installed. Cure: pip inst"
    ):
        cc.report.Recorder(tmp_path, tensorboard=True)


@pytest.mark.slow
def test_nothing_heavy_is_imported_before_it_is_needed(programs: Programs) -> None:
    code = (
        "import sys, compcomm as cc; cc.report.Recorder; "
        "print([m for m in ('matplotlib', 'tensorboard', 'rich') if m in sys.modules])"
    )
    said = programs.run(code)
    assert said.stdout.strip() == "[]", said.stderr


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="every=0"):
        quiet(tmp_path, every=0)
    with pytest.raises(ValueError, match="errors_every=-1"):
        quiet(tmp_path, errors_every=-1)
    with pytest.raises(TypeError, match=r"Recorder\(int\): give what cc\.attach"):
        quiet(tmp_path, 3)
    record = quiet(tmp_path)
    with pytest.raises(TypeError, match=r"Recorder.step\(loss='low'\)"):
        record.step(loss="low")
    with pytest.raises(TypeError, match=r"step\(loss=tensor.*one element"):
        record.step(loss=torch.ones(2))
    with pytest.raises(ValueError, match=r"at=-1"):
        record.step(at=-1)
    with pytest.raises(ValueError, match=r"step\(step=\.\.\.\).*The step's number is at="):
        record.step(step=4)
    with pytest.raises(ValueError, match=r"'seconds' of the recorder's own"):
        record.step(seconds=4)
    record.close()
    with pytest.raises(RuntimeError, match="was closed"):
        record.step(loss=1.0)
    (tmp_path / "steps.jsonl").write_text("nonsense\n")
    with pytest.raises(ValueError, match="line 1 is not what a Recorder writes"):
        quiet(tmp_path).step(loss=1.0)
