"""`benchmarks/adaptive.py` in small: gains are never losses, rules lose alike, and the results page has it all."""

from __future__ import annotations

import doctest
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import compcomm as cc

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import adaptive  # noqa: E402
import record  # noqa: E402
import results_page  # noqa: E402
from adapting import gains, rivals, steps, training  # noqa: E402

from compcomm.plan import shapes  # noqa: E402


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["adaptive.py", *arguments])
    adaptive.main()


def read(file: Path) -> dict[str, Any]:
    found = json.loads(file.read_text())
    assert found["hardware"] and found["versions"] and found["commit"]
    return found


@pytest.mark.slow
def test_gains_and_rivals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row per family that is never worse than uniform; rules at equal error; both in the page."""
    where = ["--model", "digits", f"--recorded={tmp_path}", "--quick"]
    file, plot = tmp_path / "adaptive-gains.json", tmp_path / "gains.png"
    run(monkeypatch, "gains", *where, f"--json={file}", f"--plot={plot}")
    assert plot.read_bytes().startswith(b"\x89PNG")
    found = read(file)
    assert {r["family"] for r in found["rows"]} == {*gains.FAMILIES, "density, 1.6 %"}
    for row in found["rows"]:
        assert row["gain"] >= 1 and row["chosen_error"] <= row["uniform_error"] * (1 + 1e-9)
        assert [layer["name"] for layer in row["layers"]] == ["0.weight", "2.weight", "4.weight"]
    ratios = [r["ratio"] for r in found["curve"] if r["ratio"]]
    assert ratios == sorted(ratios)  # more error, fewer bytes
    file = tmp_path / "adaptive-rivals.json"
    run(monkeypatch, "rivals", *where, f"--json={file}")
    rows = {r["name"]: r for r in read(file)["rows"]}
    assert list(rows) == ["uniform", "L-GreCo", "L-GreCo from 1/4096", "global top-k", "LEGACY"]
    assert rows["L-GreCo"]["norms_ratio"] > rows["uniform"]["norms_ratio"]
    assert rows["L-GreCo from 1/4096"]["norms_ratio"] >= rows["L-GreCo"]["norms_ratio"]
    assert rows["global top-k"]["squares_ratio"] > rows["uniform"]["squares_ratio"]
    monkeypatch.setattr(results_page, "RESULTS", tmp_path)
    said = results_page.adaptive()
    assert "| digits' MLP, `PowerSGD(4)` |" in said and "| digits' MLP, global top-k |" in said


def test_a_worse_choice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = record.load("digits", tmp_path, quick=True)
    monkeypatch.setattr(cc.LGreCo, "decide", lambda self, t: [t.settings[0]] * len(t.names))
    with pytest.raises(AssertionError, match="worse than uniform"):
        gains.compare(named, "TopK(ratio=0.01, dense_below=1)")


def test_what_a_choice_loses_is_what_coding_leaves(tmp_path: Path) -> None:
    named = record.load("digits", tmp_path, quick=True)
    g = rivals.Gradient(named, cc.TopK(ratio=0.01, dense_below=1))
    densities = dict(zip(g.named, (0.002, 0.05, 0.3), strict=True))
    lost = [
        float(x.flatten().abs().sort(descending=True).values[-int(-densities[n] * x.numel() // 1) :].norm())
        for n, x in g.named.items()
    ]
    assert g.lost(densities).norms == pytest.approx(sum(lost), rel=1e-5)
    kept = sum(-int(-d * g.named[n].numel() // 1) for n, d in densities.items())
    assert 6 * kept <= g.bytes(densities) <= 6 * kept + 24 * len(lost)


def test_gpt2_is_recorded_with_its_own_names_and_most_words_untouched(tmp_path: Path) -> None:
    found = record.load("gpt2", tmp_path, quick=True)
    assert {n: tuple(t.shape) for n, t in found.items()} == dict(shapes.gpt2(48, 2))
    rows = found["wte.weight"].abs().sum(1)
    assert all(bool(torch.isfinite(t).all()) and bool(t.any()) for t in found.values())
    assert len(rows) == 50257


@pytest.mark.slow
def test_training_allocation_and_phases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty steps of every method; the same bytes are the same bytes; a picture, and the page's tables."""
    monkeypatch.setattr(training, "POINTS", 4)
    few = ("no compression", "top-k, uniform", "top-k, L-GreCo", "top-k, L-GreCo, same bytes", "top-k, global")
    every = training.methods("digits", 5)
    assert {training.yardstick(name) for name in every} <= set(every)
    for text in every.values():
        assert repr(cc.parse(text))
    monkeypatch.setattr(training, "methods", lambda task, each: {name: every[name] for name in few})
    monkeypatch.setattr(training, "ProcessPoolExecutor", Alone)
    file, plot = tmp_path / "adaptive-train-digits.json", tmp_path / "train.png"
    run(
        monkeypatch, "train", "--task=digits", "--steps=20", "--every=5", "--world=2", "--seeds=2", f"--json={file}",
        f"--plot={plot}",
    )  # fmt: skip
    assert plot.read_bytes().startswith(b"\x89PNG")
    rows = {r["name"]: r for r in read(file)["rows"]}
    assert list(rows) == list(few) and rows["no compression"]["ratio"] == 1
    assert rows["top-k, L-GreCo"]["bytes_per_step"] < 0.99 * rows["top-k, uniform"]["bytes_per_step"]
    same = rows["top-k, L-GreCo, same bytes"]["bytes_per_step"]
    assert same <= 1.02 * rows["top-k, uniform"]["bytes_per_step"]  # the controller's own messages come every 5 steps
    assert rows["top-k, uniform"]["fewer_to_yardstick"] == 1 and len(rows["top-k, L-GreCo"]["losses"]) == 2
    chosen = rows["top-k, L-GreCo"]["choices"]
    assert [step for step, _ in chosen] == [5, 10, 15, 20] and set(chosen[0][1]) == {"0.weight", "2.weight", "4.weight"}
    file = tmp_path / "adaptive-phases.json"
    run(monkeypatch, "phases", "--model", "digits", f"--recorded={tmp_path}", "--quick", f"--json={file}")
    (row,) = read(file)["rows"]
    assert row["layers"] == 3 and all(row[f"{part}_seconds"] > 0 for part in ("gather", "measure", "decide", "adopt"))
    monkeypatch.setattr("allocation.RUNS", 1)
    run(monkeypatch, "allocation", f"--json={tmp_path / 'adaptive-allocation.json'}")
    monkeypatch.setattr(results_page, "RESULTS", tmp_path)
    said = results_page.adaptive()
    assert "| top-k, global: `GlobalTopK(" in said and "160 layers of 16 settings in 10,000 buckets" in said
    assert "Where it goes" in said


@pytest.mark.multi
@pytest.mark.full
def test_cost_of_two_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Periods with telemetry and without, in turns."""
    file = tmp_path / "adaptive-cost-charlm.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["benchmarks/adaptive.py", "cost", "--every=30", "--steps=60", f"--json={file}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = read(file)["rows"]
    assert row["world_size"] == 2 and row["every"] == 30 and row["periods"] == 2
    assert 0 < row["review_seconds_per_step"] < row["seconds"]
    assert set(row["more_with"]) == {"gathering", "beside", "other"} and row["longest_beside_with"] > 0
    monkeypatch.setattr(results_page, "RESULTS", tmp_path)
    assert "What telemetry costs" in results_page.adaptive() and "| character transformer |" in results_page.adaptive()


class Alone:
    """A pool of this process."""

    def __init__(self, *_: Any) -> None:
        pass

    def __enter__(self) -> Alone:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def map(self, call: Any, jobs: Any) -> Any:
        return map(call, jobs)


def test_docstrings() -> None:
    assert doctest.testmod(training) == (0, 1) and doctest.testmod(steps) == (0, 1)


def test_without_files_the_page_has_no_such_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results_page, "RESULTS", tmp_path)
    assert results_page.adaptive() == ""
