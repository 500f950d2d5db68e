"""Reading runs: cut short, restarted, empty, without this or that."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compcomm.report import runs


def written(folder: Path, *entries: dict[str, Any] | str, **about: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(e if isinstance(e, str) else json.dumps(e) + "\n" for e in entries)
    (folder / "steps.jsonl").write_text(text)
    if about:
        (folder / "run.json").write_text(json.dumps(about))
    return folder


def step(number: int, **numbers: Any) -> dict[str, Any]:
    return {"step": number, "seconds": 0.5 * number, "loss": 1.0 / number, **numbers}


def test_columns_have_what_was_recorded_together(tmp_path: Path) -> None:
    run = runs.read(written(tmp_path, step(1), step(2, loss=None), step(3, accuracy=0.5)))
    steps, loss = run.columns("step", "loss")
    assert steps.tolist() == [1, 2, 3] and loss[0] == 1.0 and math.isnan(loss[1])
    assert [c.tolist() for c in run.columns("accuracy", "step")] == [[0.5], [3]]
    assert [len(c) for c in run.columns("step", "unheard of")] == [0, 0]


def test_a_last_line_that_was_cut_is_left_out(tmp_path: Path) -> None:
    assert len(runs.read(written(tmp_path, step(1), step(2), '{"step": 3, "lo')).steps) == 2
    assert (
        len(runs.read(written(tmp_path, step(1), step(2), '{"step": 3}')).steps) == 2
    )  # whole, for all that one knows
    assert runs.read(written(tmp_path, '{"st')).steps == []


def test_a_restarted_run_has_the_steps_of_the_attempt_that_went_on(tmp_path: Path) -> None:
    again = {"loss": 9.0}
    run = runs.read(written(tmp_path, *map(step, range(1, 9)), step(4, **again), step(5, **again)))
    assert [(s["step"], s["loss"]) for s in run.steps] == [(1, 1), (2, 0.5), (3, 1 / 3), (4, 9), (5, 9)]
    run = runs.read(written(tmp_path, *map(step, range(1, 9)), step(1, **again)))  # begun anew
    assert [s["loss"] for s in run.steps] == [9]


def test_the_pace_leaves_out_what_came_before_training(tmp_path: Path) -> None:
    run = runs.read(written(tmp_path, *(step(n, seconds=60 + 0.1 * n) for n in range(5, 11))))
    assert run.pace("seconds") == pytest.approx(0.1)
    assert runs.read(written(tmp_path, step(4))).pace("seconds") == 0.5
    assert run.pace("bytes_sent") is None
    assert runs.read(written(tmp_path)).pace("seconds") is None


def test_a_grid_has_parameters_in_the_models_order(tmp_path: Path) -> None:
    entries = step(1, choices={"a": 0.1, "z": 0.2}), step(2), step(3, choices={"b": 0.3, "other": 0.5, "a": 0.4})
    run = runs.read(written(tmp_path, *entries, parameters={"z": 1, "b": 2, "a": 3, "exact": 4}))
    steps, names, values = run.grid("choices")
    assert steps.tolist() == [1, 3] and names == ["z", "b", "a", "other"]
    expected = [[0.2, math.nan], [math.nan, 0.3], [0.1, 0.4], [math.nan, 0.5]]
    assert np.array_equal(values, expected, equal_nan=True)
    steps, names, values = run.grid("errors")
    assert (len(steps), names, values.shape) == (0, [], (0, 0))


def test_the_reducer_as_the_run_ended(tmp_path: Path) -> None:
    said = step(1, reducer="Exact()"), step(2), step(3, reducer="TopK(0.1)"), step(4)
    assert runs.read(written(tmp_path, *said, reducer="Auto()")).reducer == "TopK(0.1)"
    assert runs.read(written(tmp_path, step(1), reducer="Auto()")).reducer == "Auto()"
    assert runs.read(written(tmp_path, step(1), reducer=None)).reducer == "-"


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folders = [written(tmp_path / p, step(1)) for p in ("monday/topk", "tuesday/topk", "tuesday/sign")]
    found = [runs.read(f) for f in folders]
    assert [r.name for r in runs.named(found, folders)] == ["monday/topk", "tuesday/topk", "tuesday/sign"]
    assert [r.name for r in runs.named(found[1:], folders[1:])] == ["topk", "sign"]


def test_the_folder_one_is_in_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(written(tmp_path / "here", step(1)))
    assert runs.read(".").name == "here"


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere has no steps\.jsonl: no run\. cc\.report\.Recorder"):
        runs.read(tmp_path / "nowhere")
    written(tmp_path / "inner", step(1))
    with pytest.raises(ValueError, match=r"no run\. Its runs are .*inner"):
        runs.read(tmp_path)
    typed = ('{"step": 2, "loss": "abc"}', '{"step": "2"}', '{"step": 1.5}', '{"step": 2, "errors": {"a": "b"}}')
    shaped = (
        '{"step": 2, "choices": 5}',
        '{"step": 2, "seconds": [1]}',
        '{"step": 2, "reducer": 7}',
        '{"step": 1e999}',
    )
    for nonsense in ("nonsense", "3", "{}", '{"step": null}', "", *typed, *shaped):
        with pytest.raises(ValueError, match=r"line 2 is not what a Recorder writes"):
            runs.read(written(tmp_path / "bad", step(1), nonsense + "\n", step(3)))
    odd = step(2, errors={"a": None, "b": 1}, choices=None, reducer=None, accuracy=1)
    assert len(runs.read(written(tmp_path / "odd", step(1), odd)).steps) == 2
    written(tmp_path / "inner", step(1))
    for nonsense in ('{"reducer": ', "[]"):
        (tmp_path / "inner" / "run.json").write_text(nonsense)
        with pytest.raises(ValueError, match=r"run\.json is not what a Recorder writes"):
            runs.read(tmp_path / "inner")
