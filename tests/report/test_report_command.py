"""python -m compcomm report: the table, the pictures and what it says where there is nothing to show."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pytest

from compcomm import __main__
from compcomm.report import command, history, runs

from .test_runs import step, written

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
REDUCER = "LGreCo(TopK(ratio=0.01))"


def run_of(folder: Path, layers: int = 0, steps: int = 40) -> Path:
    entries = []
    for n in range(1, steps + 1):
        sums = {"bytes_sent": 10**6 * n, "kernel_seconds": 0.01 * n, "exposed_seconds": 0.02 * n}
        table = {}
        if layers and n % 10 == 0:
            table["choices"] = {f"layer{i}": 0.001 * 2 ** ((i + n) % 7) for i in range(layers)}
            table["errors"] = {f"layer{i}": 0.5 for i in range(layers)}
        entries.append(step(n, **sums, **table))
    about = {"parameters": {f"layer{i}": 10 for i in range(layers)}, "reducer": REDUCER, "knob": "density"}
    return written(folder, *entries, '{"step": 41, "lo', **about)


def call(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    command.arguments(parser)
    return command.main(parser.parse_args([str(a) for a in arguments]))


def size(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


def test_it_prints_a_table_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b, out = run_of(tmp_path / "uniform"), run_of(tmp_path / "lgreco", layers=160), tmp_path / "out"
    assert call(a, b, "--out", out) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].split() == ["run", "steps", "loss", "MB/step", "ms/step", "exposed", "kernels", "reducer"]
    assert said[1].split() == ["uniform", "40", "0.0250", "1", "500", "20", "10", *REDUCER.split()]
    names = ["loss.png", "choices-lgreco.png", "errors-lgreco.png"]
    assert said[3:-2] == [str(out / n) for n in names] and sorted(p.name for p in out.iterdir()) == sorted(names)
    assert [line.split(":")[0] for line in said[-2:]] == [
        f"no picture of {k} for uniform" for k in ("choices", "errors")
    ]
    assert size(out / "choices-lgreco.png")[1] == 1760 > size(out / "loss.png")[1]


def test_a_single_run_draws_into_its_own_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_of(tmp_path / "run", layers=3, steps=10)  # one decision, one table of errors
    assert call(folder, folder) == 0
    assert sorted(p.name for p in folder.glob("*.png")) == ["choices.png", "errors.png", "loss.png"]
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_a_loss_that_is_no_number_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lost = written(tmp_path / "lost", *(step(n, loss=None) for n in range(1, 4)))
    mixed = written(tmp_path / "mixed", step(1), step(2), step(3, loss=None))
    assert call(lost, mixed) == 0
    rows = [line.split()[:4] for line in capsys.readouterr().out.splitlines()[1:3]]
    assert rows == [["lost", "3", "nan", "-"], ["mixed", "3", "nan", "-"]]


def test_scalars_alone_give_no_picture_of_layers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(written(tmp_path, {"step": 1, "seconds": 0.1, "accuracy": 0.5})) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize("bits", [True, False])
def test_settings_of_a_wide_range_have_a_logarithmic_colour(
    tmp_path: Path, bits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[bool] = []
    monkeypatch.setattr(history, "_heat", lambda *_, logarithmic: given.append(logarithmic))
    chosen = {"a": 2.0, "b": 8.0} if bits else {"a": 0.001, "b": 0.1}
    history.choices(runs.read(written(tmp_path, step(1, choices=chosen), step(2))), tmp_path / "x.png")
    assert given == [not bits]


def test_running_means() -> None:
    assert history.smooth(np.arange(4.0)).tolist() == [0, 1, 2, 3]
    even = history.smooth(np.tile([0.0, 1.0], 100))
    assert len(even) == 197 and np.allclose(even, 0.5)


def test_it_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = run_of(tmp_path / "good")
    assert call(good, tmp_path / "none") == 2
    assert "none has no steps.jsonl: no run" in capsys.readouterr().err
    assert call(good, written(tmp_path / "empty")) == 2
    assert "empty: no step was recorded yet" in capsys.readouterr().err
    assert call(written(tmp_path / "typed", {"step": 1, "loss": "abc"})) == 2
    assert "steps.jsonl, line 1 is not what a Recorder writes" in capsys.readouterr().err
    assert call(good, "--out", good / "steps.jsonl" / "pictures") == 2
    said = capsys.readouterr().err
    assert said.startswith("report: ") and "pictures" in said and len(said.splitlines()) == 1


def test_without_matplotlib_the_table_still_comes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert call(run_of(tmp_path / "run")) == 2
    said = capsys.readouterr()
    assert "0.0250" in said.out and "matplotlib is not installed. Cure: pip install 'compcomm[bench]'" in said.err


def test_as_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["report", str(tmp_path)]) == 2
    assert "no run" in capsys.readouterr().err
