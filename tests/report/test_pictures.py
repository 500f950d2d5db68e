"""What the pictures of runs say about themselves, and where they go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compcomm.report import history, runs

from .test_report_command import call, run_of
from .test_runs import step, written

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Figures instead of files."""
    found: list[Any] = []
    figure = pytest.importorskip("matplotlib.figure")
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, *_, **__: (self.canvas.draw(), found.append(self)))
    return found


def test_losses_say_whose_they_are_and_what_is_thick(tmp_path: Path, drawn: list[Any]) -> None:
    entries = [step(10 * n, bytes_sent=10**6 * n) for n in range(1, 301)]
    history.losses([runs.read(written(tmp_path, *entries))], tmp_path / "loss.png")
    left, right = drawn[0].axes
    assert "rank 0" in left.get_ylabel() and "rank 0" in left.get_xlabel()
    assert "logarithmic" in left.get_xlabel() and left.get_xscale() == "log"
    assert "linear" in right.get_xlabel() and right.get_xscale() == "linear"
    said = drawn[0].legends[0].get_title().get_text()
    assert said == "thick: moving mean over the last 60 steps; thin: each recorded loss"


def test_a_short_run_has_one_line_and_no_remark(tmp_path: Path, drawn: list[Any]) -> None:
    history.losses([runs.read(written(tmp_path, *map(step, range(1, 40))))], tmp_path / "loss.png")
    assert drawn[0].legends[0].get_title().get_text() == "" and len(drawn[0].axes[0].lines) == 1
    assert drawn[0].axes[0].get_xlabel() == "steps (linear axis)"


@pytest.mark.parametrize(("low", "high", "arrow"), [(0.2, 0.4, "neither"), (0.5, 1.3, "max")])
def test_errors_of_all_runs_have_one_scale(
    tmp_path: Path, drawn: list[Any], low: float, high: float, arrow: str
) -> None:
    entries = step(1, errors={"a": low, "b": None}), step(2, errors={"a": high, "b": low})
    history.errors(runs.read(written(tmp_path, *entries)), tmp_path / "errors.png")
    heat, bar = drawn[0].axes
    assert heat.collections[0].get_clim() == (0.0, 1.0) and heat.collections[0].colorbar.extend == arrow
    assert " ".join(bar.get_ylabel().split()) == "|x - C(x)| / |x| (x: gradient plus residual)"


def test_choices_say_when_they_take_effect(tmp_path: Path, drawn: list[Any]) -> None:
    chosen = step(1, choices={"a": 3.0, "b": 5.0}), step(2)
    history.choices(runs.read(written(tmp_path, *chosen, knob="bits")), tmp_path / "choices.png")
    heat, bar = drawn[0].axes
    assert "up to 10 steps after a period's end" in heat.get_title() and bar.get_ylabel() == "bits"
    low, high = bar.get_ylim()
    assert all(float(tick).is_integer() for tick in bar.get_yticks() if low <= tick <= high)


def test_each_runs_pictures_go_into_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = run_of(tmp_path / "uniform"), run_of(tmp_path / "lgreco", layers=3)
    assert call(a, b) == 0
    said = capsys.readouterr().out.splitlines()[3:]
    assert said[:3] == [str(p) for p in (tmp_path / "loss.png", b / "choices.png", b / "errors.png")]
    assert all(Path(line).is_file() for line in said[:3]) and not list(a.glob("*.png"))
    assert said[3].startswith("no picture of choices for uniform: nothing, such as LGreCo,") and "errors" in said[4]


def test_the_folder_that_runs_lie_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert runs.common([Path("a/x"), Path("b/x")]) == Path() and runs.common([Path("x")]) == Path("x")
    assert runs.common([Path("a/x"), tmp_path / "a" / "y"]) == tmp_path / "a"
    assert runs.common([Path("../x"), Path("y")]) == Path("..")
    assert runs.common([Path("/never/x"), Path("/nowhere/y")]) == Path("/never/x")
