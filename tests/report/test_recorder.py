"""What a Recorder writes, and what the report makes of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import compcomm as cc
from compcomm.report import extras, recorder, runs


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


def test_scalars_alone(tmp_path: Path) -> None:
    with cc.report.Recorder(tmp_path / "a", tensorboard=False) as record:
        for step in range(3):
            record.step(loss=torch.tensor(2.0 - step), accuracy=step / 2, nothing=None)
    found = lines(tmp_path / "a")
    assert [(line["step"], line["loss"], line["accuracy"]) for line in found] == [(1, 2, 0), (2, 1, 0.5), (3, 0, 1)]
    assert all("nothing" not in line for line in found)
    assert found[0]["seconds"] < found[2]["seconds"]  # type: ignore[operator]
    assert json.loads((tmp_path / "a" / "run.json").read_text())["torch"] == torch.__version__


def test_every_and_numbers_that_are_none(tmp_path: Path) -> None:
    with cc.report.Recorder(tmp_path, tensorboard=False, every=2) as record:
        for _ in range(5):
            record.step(loss=float("nan"))
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(2, None), (4, None)]
    assert runs.read(tmp_path).series("loss") == ([], [])


def test_a_run_that_was_killed_and_goes_on(tmp_path: Path) -> None:
    with cc.report.Recorder(tmp_path, tensorboard=False) as record:
        for _ in range(4):
            record.step(loss=1.0)
    file = tmp_path / "steps.jsonl"
    file.write_text(file.read_text()[:-20])  # cut in the middle of the last line
    assert [s["step"] for s in runs.read(tmp_path).steps] == [1, 2, 3]
    before = runs.read(tmp_path).steps[-1]["seconds"]
    with cc.report.Recorder(tmp_path, tensorboard=False) as record:
        for _ in range(5):
            record.step(loss=2.0)
    again = runs.read(tmp_path)
    assert [s["step"] for s in again.steps] == [1, 2, 3, 4, 5]
    assert {s["loss"] for s in again.steps} == {2.0}
    assert again.steps[0]["seconds"] >= before


def test_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with cc.report.Recorder(tmp_path, tensorboard=True) as record:
        record.step(loss=3.0)
        record.step(loss=2.0)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 3.0), (2, 2.0)]


def test_without_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str, call: str) -> object:
        if "tensorboard" in module:
            raise ImportError(f"{call}: tensorboard is not installed. Cure: pip install 'compcomm[bench]'.")
        return extras.need(module, call)

    monkeypatch.setattr(recorder, "need", missing)
    with cc.report.Recorder(tmp_path) as record:
        record.step(loss=3.0)
    assert len(lines(tmp_path)) == 1
    with pytest.raises(ImportError, match="tensorboard is not installed"):
        cc.report.Recorder(tmp_path, tensorboard=True)


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="every=0"):
        cc.report.Recorder(tmp_path, every=0)
    with pytest.raises(ValueError, match="errors_every=-1"):
        cc.report.Recorder(tmp_path, errors_every=-1)
    with pytest.raises(TypeError, match=r"Recorder.step\(loss='low'\)"):
        cc.report.Recorder(tmp_path, tensorboard=False).step(loss="low")
    with pytest.raises(TypeError, match=r"give what cc\.attach"):
        cc.report.Recorder(tmp_path, 3, tensorboard=False).step()


def written(folder: Path, name: str, layers: int = 0) -> Path:
    folder = folder / name
    folder.mkdir(parents=True)
    entries = []
    for step in range(1, 41):
        entry: dict[str, object] = {
            "step": step, "seconds": 0.1 * step, "bytes_sent": 1000 * step, "kernel_seconds": 0.01 * step,
            "exposed_seconds": 0.02 * step, "loss": 3.0 / step, "reducer": "LGreCo(TopK(ratio=0.01))",
        }  # fmt: skip
        if layers and step % 10 == 0:
            entry["choices"] = {f"layer{i}": 0.001 * (1 + (i + step) % 7) for i in range(layers)}
            entry["errors"] = {f"layer{i}": 0.5 for i in range(layers)}
        entries.append(json.dumps(entry))
    (folder / "steps.jsonl").write_text("\n".join(entries) + '\n{"step": 41, "lo')
    (folder / "run.json").write_text(json.dumps({"parameters": {f"layer{i}": 10 for i in range(layers)}}))
    return folder


def command(*arguments: object) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "compcomm", "report", *map(str, arguments)], capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout, done.stderr


def test_the_command_draws_and_prints(tmp_path: Path) -> None:
    a, b = written(tmp_path, "uniform"), written(tmp_path, "lgreco", layers=160)
    code, said, error = command(a, b, "--out", tmp_path / "out")
    assert code == 0, error
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "choices-lgreco.png", "errors-lgreco.png", "loss.png"
    ]  # fmt: skip
    assert all(p.read_bytes()[:4] == b"\x89PNG" for p in (tmp_path / "out").iterdir())
    assert "uniform" in said and "0.0750" in said and "LGreCo(TopK(ratio=0.01))" in said


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    written(tmp_path, "good")
    code, _, error = command(tmp_path / "none")
    assert (code, "no run" in error) == (2, True)
    code, _, error = command(tmp_path)
    assert (code, "Its runs are" in error, "good" in error) == (2, True, True)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "steps.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    code, _, error = command(tmp_path / "bad")
    assert (code, "line 2" in error) == (2, True)
    (tmp_path / "bad" / "steps.jsonl").write_text("")
    code, _, error = command(tmp_path / "bad")
    assert (code, "no step was recorded" in error) == (2, True)
