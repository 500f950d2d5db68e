"""The kernel benchmark runs every case on a small vector and says where it was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compcomm.ops import native
from tests.fresh import Programs

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_case(tmp_path: Path, programs: Programs) -> None:
    file = tmp_path / "kernels.json"
    options = ["--numel", "3000", "--repeats", "3", "--budget", "0", "--json", str(file)]
    done = programs.script(ROOT / "benchmarks" / "kernels.py", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(file.read_text())
    assert found["benchmark"] == "kernels" and {"hardware", "versions", "commit"} <= found.keys()
    rows = found["rows"]
    assert {r["backend"] for r in rows} == {"reference", "torch"} | ({"native"} if native.available() else set())
    assert len({r["op"] for r in rows}) > 25
    for row in rows:
        assert row["numel"] == 3000 and row["seconds"] > 0 and row["spread"][0] <= row["seconds"] <= row["spread"][1]
        assert row["memcpy_ratio"] == row["seconds"] / row["memcpy_seconds"]
