"""The short forms of `benchmarks/convergence`: digits in the simulator, a transformer between two real processes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import compcomm as cc

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "convergence"


def _script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"convergence_{name}", FOLDER / f"{name}.py")
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_digits() -> None:
    """In 250 steps DGC (with 16 times fewer bytes) and PowerSGD (15 times) come near momentum SGD."""
    script = _script("digits")
    chosen = [m for m in script.methods(20) if m.name in ("momentum SGD", "DGC 1 %", "PowerSGD rank 2")]
    first, *others = script.compare(chosen, 1, 250)
    assert first["accuracy"] > 0.94 and first["ratio"] == pytest.approx(1.0, abs=0.01)
    for row in others:
        assert row["behind"] < 0.03, row
        assert row["ratio"] > 15, row


def test_digits_bytes_are_those_of_the_messages() -> None:
    """1 % of 17,024 coded elements at six bytes, 202 exact ones at four, counts, a header."""
    script = _script("digits")
    kept = sum(-(-n // 100) for n in (128 * 64, 64 * 128, 640))
    wire = sum(4 + -(-2 * -(-n // 100) // 4) * 4 + 4 * -(-n // 100) for n in (128 * 64, 64 * 128, 640))
    assert 6 * kept + 12 <= wire <= 6 * kept + 18
    sent = script.message(cc.ErrorFeedback(cc.TopK(0.01, dense_below=1)), 3)
    assert wire + 4 * 202 < sent < wire + 4 * 202 + 64
    with_warm_up = script.message(cc.DGC(cc.TopK(0.01, dense_below=1), warmup=10), 10)
    assert 4 * sent < with_warm_up < 0.5 * 4 * 17_226


@pytest.mark.multi
@pytest.mark.timeout(300)
@pytest.mark.full
def test_charlm(tmp_path: Path) -> None:
    """It learns, with 270 times fewer bytes after the warm-up; the losses of long runs are in the results."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = [
        "--steps=60",
        "--warmup=20",
        "--rates=0.1",
        f"--json={tmp_path / 'a.json'}",
        f"--plot={tmp_path / 'a.png'}",
    ]
    job = subprocess.run(
        [*command, str(FOLDER / "charlm.py"), *options], env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert job.returncode == 0, job.stdout + job.stderr
    found = json.loads((tmp_path / "a.json").read_text())
    exact, dgc, feedback = found["rows"]
    assert [row["method"] for row in found["rows"]] == ["momentum SGD", "DGC", "error feedback"]
    for row in (dgc, feedback):
        assert row["ratio"] > 270 and row["coded_ratio"] > 270, row
        assert row["sent"] * 270 <= 4 * 812_416
    assert exact["loss"] < exact["curve"][0][3] and dgc["loss"] < dgc["curve"][0][3]
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_the_transformer_has_no_biases() -> None:
    script = _script("charlm")
    model = script.Unbiased().model(0)
    names = [n for n, _ in model.named_parameters()]
    assert not any("bias" in n for n in names) and len(names) == 2 + 4 * 6 + 2
    assert sum(p.numel() for p in model.parameters()) > 800_000
    assert torch.isfinite(model(torch.zeros(1, 5, dtype=torch.int64))).all()


def _results(name: str) -> dict[str, Any]:
    found = json.loads((FOLDER.parent / "results" / f"convergence-{name}.json").read_text())
    return {row["method"]: row for row in found["rows"]}


@pytest.mark.parametrize("method", ["DGC 1 %", "DGC 0.1 %", "PowerSGD rank 1", "PowerSGD rank 2"])
def test_committed_digits(method: str) -> None:
    """Within one standard deviation of momentum SGD, at the ratios that are due (those of PowerSGD without headers)."""
    rows = _results("digits")
    row = rows[method]
    assert row["seeds"] >= 3 and row["steps"] == 1500
    assert row["behind"] <= rows["momentum SGD"]["accuracy_std"]
    assert row["ratio"] >= (0.98 if "PowerSGD" in method else 1.0) * row["ratio_due"]


def test_committed_charlm() -> None:
    rows = _results("charlm")
    dgc, feedback = rows["DGC"], rows["error feedback"]
    assert dgc["world_size"] == 2 and dgc["steps"] >= 600
    assert min(dgc["ratio"], dgc["coded_ratio"], dgc["card_ratio"]) >= 270
    assert dgc["loss"] <= feedback["loss"] and dgc["gap"] == dgc["loss"] - rows["momentum SGD"]["loss"]
