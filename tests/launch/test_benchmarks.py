"""The benchmark scripts over two processes on loopback: small settings, real collectives, valid JSON."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import common  # noqa: E402

from tests.fresh import Programs  # noqa: E402

FEEDBACK = "ErrorFeedback(TopK(ratio=0.05))"


def rows(file: Path, benchmark: str) -> list[dict[str, Any]]:
    found = json.loads(file.read_text())
    assert found["benchmark"] == benchmark
    assert found["hardware"] and found["versions"] and found["commit"] and "loopback" in found["link"]
    return found["rows"]


@pytest.mark.multi
def test_train_compares_reducers(programs: Programs, tmp_path: Path) -> None:
    """DDP itself and `Exact()` learn alike, top-k sends less; table, JSON, plot and predictions are there."""
    said = programs.ranks(
        2,
        BENCHMARKS / "train.py", "--task=digits", "--steps=40", "--link=100mbit", f"--json={tmp_path / 'a.json'}",
        f"--plot={tmp_path / 'a.png'}", "--reducer", "Exact()", "None", f"--reducer={FEEDBACK}",
    )  # fmt: skip
    assert "speedup" in said and "ErrorFeedback(" in said
    exact, plain, sparse = rows(tmp_path / "a.json", "train")
    assert [r["reducer"] for r in (exact, plain, sparse)] == ["Exact()", "None", FEEDBACK]
    for row in (exact, plain, sparse):
        assert row["world_size"] == 2 and row["steps"] == 40 and row["seconds_per_step"] > 0
        assert row["curve"][0][:3] == [0, 0, 0] and row["curve"][-1][2:] == [40, row["loss"]]
        assert row["loss"] < 1.5 < row["curve"][0][3]  # ten classes: ln 10 = 2.3 before training
        assert row["payload_bytes_per_step"] <= row["bytes_per_step"]
        assert row["predicted"]["seconds_per_step"] > 8 * row["payload_bytes_per_step"] / 1e8
        assert 0 < row["compute_seconds"] < 1
    assert plain["bound"] is None and exact["bound"] and sparse["bound"]
    assert sparse["kernel_seconds"] > 0 and sparse["wire_seconds"] > 0
    assert "bound by" in re.sub(r"\s+", " ", said)
    assert exact["loss"] == pytest.approx(plain["loss"], abs=1e-4)
    assert exact["seconds_to_target"] <= exact["seconds"] and exact["speedup"] == 1
    assert sparse["payload_bytes_per_step"] < exact["payload_bytes_per_step"] / 5
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.multi
def test_the_main_job_in_small(programs: Programs, tmp_path: Path) -> None:
    """The quickstart's transformer on its text, one step for each of its reducers."""
    script = (ROOT / "launch" / "quickstart.sh").read_text()
    reducers = re.findall(r'--reducer "(.*)"', script)
    assert len(reducers) == 5
    programs.ranks(
        2,
        BENCHMARKS / "train.py", "--task=charlm", "--steps=1", f"--json={tmp_path / 'c.json'}", "--reducer", *reducers,
    )  # fmt: skip
    found = rows(tmp_path / "c.json", "train")
    assert [r["reducer"] for r in found] == reducers
    for row in found:
        assert row["steps"] == 1 and math.isfinite(row["loss"])
        assert row["loss"] < row["curve"][0][3]
    sent = [row["payload_bytes_per_step"] for row in found]
    assert sent == sorted(sent, reverse=True)
    assert sent[0] > 4 * 800_000


@pytest.mark.multi
def test_sharded_models_and_two_levels(programs: Programs, tmp_path: Path) -> None:
    """Every host takes its steps, with bytes counted; FSDP2's losses are told beside its own without a reducer."""
    sharded = BENCHMARKS / "sharded.py"
    programs.ranks(4, sharded, "loopback", "--steps=1", "--width=16", "--blocks=1", f"--json={tmp_path / 's.json'}")
    found = rows(tmp_path / "s.json", "sharded-loopback")
    assert [(r["host"], r["reducer"]) for r in found] == [
        ("fsdp2", "None"), ("fsdp2", "Exact()"), ("hsdp", "None"), ("hsdp", "Exact()"), ("ddp", "None"),
        ("ddp", "Exact()"), ("hierarchical", "Exact()"),
    ]  # fmt: skip
    for row in found:
        assert row["world_size"] == 4 and row["seconds"] > 0 and row["state_bytes_per_parameter"] == 0
        assert row["bytes_per_step"] > 4 * row["parameters"] and row["speedup"] > 0
    assert len(json.loads((tmp_path / "s.json").read_text())["targets"]) == 4
    programs.ranks(4, sharded, "losses", "--lengths", "2", "4", "--seeds=1", f"--json={tmp_path / 'l.json'}")
    first, *others = rows(tmp_path / "l.json", "sharded-losses")
    assert first["reducer"] == "None" and first["gap"] == {"2": 0, "4": 0} and first["losses"]["4"][0] < 2.4
    for row in others:
        assert row["gap"]["4"] == row["losses"]["4"][0] - first["losses"]["4"][0]
        assert abs(row["gap"]["4"]) < 0.1
    assert [r["weights"] is None for r in others] == [True, True, False, True]
    assert others[0]["state_bytes_per_parameter"] > 1 > others[1]["state_bytes_per_parameter"]


@pytest.mark.multi
def test_train_with_a_sharded_model(programs: Programs, tmp_path: Path) -> None:
    """`--host fsdp2` learns as DDP does; hosts of two levels say what they need."""
    script, file = BENCHMARKS / "train.py", tmp_path / "f.json"
    programs.ranks(
        2, script, "--task=digits", "--steps=20", "--host=fsdp2", f"--json={file}", "--reducer", "None", "Exact()"
    )
    plain, exact = rows(file, "train")
    assert plain["host"] == exact["host"] == "fsdp2" and plain["reducer"] == "None"
    assert exact["loss"] == pytest.approx(plain["loss"], abs=1e-4) and exact["loss"] < plain["curve"][0][3]
    with pytest.raises(AssertionError, match="needs several nodes of several ranks each"):
        programs.ranks(2, script, "--task=digits", "--steps=1", "--host=hsdp", "--reducer", "None")


@pytest.mark.multi
def test_exchange_measures_reducers_and_peers(programs: Programs, tmp_path: Path) -> None:
    """`Exact()` has no error but rounding; top-k has a cold and a warm row; PyTorch's hooks stand beside them."""
    model = tmp_path / "model.py"
    model.write_text("def shapes():\n    return [('a', (300, 1000)), ('b', (7,)), ('c', (500, 1000))]\n")
    programs.ranks(
        2,
        BENCHMARKS / "exchange.py", f"--model={model}", "--repeats=2", f"--json={tmp_path / 'b.json'}",
        "--reducer=Exact()", f"--reducer={FEEDBACK}",
    )  # fmt: skip
    exact, cold, warm, *peers = rows(tmp_path / "b.json", "exchange")
    assert exact["relative_error"] < 1e-6 and exact["speedup"] == 1 and not exact["cold"]
    assert (cold["reducer"], cold["cold"], warm["reducer"], warm["cold"]) == (FEEDBACK, True, FEEDBACK, False)
    assert exact["payload_bytes"] == 4 * 800_007
    assert 0 < warm["payload_bytes"] < 0.05 * 800_007 * 8
    for row in (exact, cold, warm):
        assert row["bytes_sent"] > row["payload_bytes"] and row["seconds"] > 0
    assert [row["reducer"].split(",")[0] for row in peers] == [
        "torch allreduce_hook", "torch fp16_compress_hook", "torch powerSGD_hook", "torch powerSGD_hook",
        "plain PowerSGD with bmm",
    ]  # fmt: skip
    assert peers[0]["relative_error"] < 1e-6 < peers[1]["relative_error"] < 1e-2
    assert all(math.isfinite(row["relative_error"]) for row in peers)


def test_a_commit_is_marked_where_code_differs_and_not_where_results_do(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        options = ["-c", "user.name=a", "-c", "user.email=a@b.invalid", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", *options, *arguments], cwd=tmp_path, capture_output=True, text=True).stdout

    assert common.commit(tmp_path) == "unknown"
    git("init", "-q")
    for name in ("benchmarks/results/kernels.json", "benchmarks/RESULTS.md", "benchmarks/kernels.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("before")
    git("add", ".")
    git("commit", "-qm", "first")
    head = git("rev-parse", "HEAD").strip()
    (tmp_path / "benchmarks" / "results" / "kernels.json").write_text("after")
    (tmp_path / "benchmarks" / "RESULTS.md").write_text("after")
    assert common.commit(tmp_path) == common.commit(tmp_path / "benchmarks") == head
    (tmp_path / "benchmarks" / "kernels.py").write_text("after")
    assert common.commit(tmp_path) == head + "+"


@pytest.mark.multi
@pytest.mark.full
def test_memory_measures_state_and_merging_it(programs: Programs, tmp_path: Path) -> None:
    programs.ranks(
        2, BENCHMARKS / "memory.py", "--width=128", "--layers=2", "--words=5000", f"--json={tmp_path / 'm.json'}"
    )
    top, eight, quantised, sparse = rows(tmp_path / "m.json", "memory")
    assert eight["slot_bytes"]["residual"] <= 1.07 * eight["parameters"]
    for row in (top, quantised, sparse):
        coded = 5000 * 128 + 2 * 12 * 128 * 128
        assert row["parameters"] == coded + 5 * 128 and row["world_size"] == 2
        assert row["slot_bytes"]["residual"] == row["merged_bytes"] == 4 * coded
        assert row["state_bytes"] == sum(row["slot_bytes"].values())
        assert row["merged_bytes"] <= row["peak_bytes"] + 4e6
    assert "server" in sparse["slot_bytes"] and "server" not in quantised["slot_bytes"]
