"""Options of the command that contradict each other or cannot be met: one line, before anything is measured."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compcomm.__main__ import main
from compcomm.plan import command, measured_plan

GIVEN = ["plan", "--model", "resnet50", "--compute", "0.2"]
PAPER = [*GIVEN, "--workers", "8", "--bandwidth", "1gbit"]


def refused(capsys: pytest.CaptureFixture[str], options: list[str]) -> str:
    assert main(options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks that were started by torchrun, as one of them sees it."""

    @contextmanager
    def joined(nodes: bool) -> Generator[Any]:
        yield SimpleNamespace(world=2, rank=0)

    def measured(*_: object) -> None:
        raise ValueError("they measure")

    monkeypatch.setattr(measured_plan, "joined", joined)
    monkeypatch.setattr(measured_plan, "measured", measured)


MEASURED = "with --measure the 2 ranks that run measure their link. Leave out --"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--latency", "50us"], f"--latency 50us: {MEASURED}latency"),
        (["--bandwidth", "1gbit"], f"--bandwidth 1gbit: {MEASURED}bandwidth"),
        (
            ["--workers", "4"],
            "--workers 4: with --measure the plan is for the 2 ranks that run. Leave out --workers",
        ),
        (["--workers", "2"], "they measure"),
        ([], "they measure"),
    ],
)
def test_ranks_that_measure_are_told_nothing_else(
    two: None, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert said in refused(capsys, [*GIVEN, "--measure", *options])


@pytest.mark.parametrize("option", ["--json", "--png"])
@pytest.mark.parametrize("start", [PAPER, [*GIVEN, "--measure"]])
def test_a_file_that_cannot_be_written_is_refused_before_the_plan_is_made(
    two: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    start: list[str],
    option: str,
) -> None:
    monkeypatch.setattr(command, "find", None)  # not even the model is looked for
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "x", tmp_path):
        said = refused(capsys, [*start, option, str(path)])
        assert f"{option} {path}: " in said and "Give a file in a folder" in said
    monkeypatch.setattr(command.os, "access", lambda *_: False)
    assert "it cannot be written" in refused(capsys, [*start, option, str(tmp_path / "new")])


def test_without_matplotlib_curves_are_refused_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    monkeypatch.setattr(command, "find", None)
    assert "matplotlib is not installed" in refused(capsys, [*PAPER, "--png", str(tmp_path / "x.png")])


def test_what_fails_on_the_way_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(command, "_on_paper", lambda *_: None)
    monkeypatch.setattr(command, "_tell", full)
    assert "No space left" in refused(capsys, PAPER)


def test_latency_needs_a_unit_and_is_50_us_by_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "latency('50'): of what? Give a unit: 50us, 50ms" in refused(capsys, [*PAPER, "--latency", "50"])
    latencies: list[Any] = []

    def plan(*_: object, latency: Any, **__: object) -> None:
        latencies.append(latency)
        raise ValueError("enough")

    monkeypatch.setattr(command, "plan", plan)
    refused(capsys, PAPER)
    refused(capsys, [*PAPER, "--latency", "20us"])
    assert latencies == ["50us", "20us"]
