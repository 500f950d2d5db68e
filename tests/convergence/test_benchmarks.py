"""The convergence experiments in short, on problems of the same kind: what their long forms show must begin here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
sys.path.insert(0, str(ROOT / "benchmarks" / "convergence"))

import libsvm  # noqa: E402
import lyapunov  # noqa: E402
import three_workers  # noqa: E402

import compcomm as cc  # noqa: E402


@pytest.mark.full
def test_three_workers() -> None:
    rows = {(r["method"], r["multiple"]): r for r in three_workers.measure(500)}
    assert three_workers.rate() == pytest.approx(5.8591e-3, rel=1e-4)
    for multiple in three_workers.MULTIPLES:
        assert rows["no feedback", multiple]["error"] < 1e-6
    assert rows["EF21", 1]["f"]["500"] == pytest.approx(1.755e-3, rel=2e-3)
    assert rows["EF21", 4]["f"]["500"] == pytest.approx(8.03e-13, rel=2e-2)
    assert rows["EF14", 1]["f"]["500"] == pytest.approx(1.784e-3, rel=2e-3)


def test_a_missing_file_says_where_it_is_to_be_had(tmp_path: Path) -> None:
    with pytest.raises(libsvm.Missing, match="Download 'phishing' from https"):
        libsvm.load(tmp_path, "phishing", 20)


@pytest.mark.turns(2)
@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["EF14", "EF21"])
@pytest.mark.parametrize("c", lyapunov.contractions()[::6], ids=repr)
def test_the_tight_rate(c: cc.Compressor, scheme: str) -> None:
    row = lyapunov.check(c, scheme, steps=20)
    assert row["holds"] and row["largest"] > 0.2 * row["rho"], row
