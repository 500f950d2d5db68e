"""The comparison of compressors: every exported one is in it, figures are those of theory, and it runs end to end."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch

import compcomm as cc
from compcomm.plan.shapes import resnet50

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import errors  # noqa: E402
import methods  # noqa: E402
import record  # noqa: E402
import results_page  # noqa: E402
import volume  # noqa: E402

from tests.fresh import Programs  # noqa: E402

EXPORTED = [v for v in map(vars(cc).get, cc.__all__) if isinstance(v, type) and issubclass(v, cc.Compressor)]


@pytest.mark.parametrize("cls", [c for c in EXPORTED if c is not cc.Compressor], ids=lambda c: c.__name__)
def test_every_exported_compressor_is_measured(cls: type[cc.Compressor]) -> None:
    found = {c for family in methods.FAMILIES for made in family.compressors() for c in methods.classes(made)}
    assert cls in found, f"give {cls.__name__} a family in benchmarks/methods.py"


def test_families_have_names_of_their_own_and_say_why_they_are_not_timed() -> None:
    assert len({f.name for f in methods.FAMILIES}) == len(methods.FAMILIES)
    assert all(f.speed is not None or f.why for f in methods.FAMILIES)


def test_errors_and_bits_are_those_of_theory() -> None:
    """One bit of Gaussian numbers leaves 1 - 2/pi; rand-k leaves 1 - k/d; what is not coded costs its 32 bits."""
    gaussian = errors.flatten(errors.synthetic("gaussian", 1 << 18))
    sign = errors.measure(cc.SignScale(), gaussian)
    assert sign["relative_error"] == pytest.approx(1 - 2 / math.pi, rel=0.01)
    assert sign["cosine"] == pytest.approx((2 / math.pi) ** 0.5, rel=0.01)
    assert sign["bits_per_element"] == 1 + 32 / 512 and sign["draws"] == 1
    random = errors.measure(cc.RandK(ratio=0.1), gaussian)
    assert random["relative_error"] == pytest.approx(0.9, rel=0.01) and random["draws"] == errors.DRAWS
    bias = errors.flatten({"w": torch.randn(1024, 3), "b": torch.randn(1024)})
    assert errors.measure(cc.Cast(torch.bfloat16), bias)["bits_per_element"] == (3 * 16 + 32) / 4
    tails = errors.flatten(errors.synthetic("student-t", 1 << 18)).flat
    assert float(tails.abs().median()) == pytest.approx(0.7649, rel=0.02)  # the quartile of Student's t with 3 degrees


def test_recordings_are_real_gradients(tmp_path: Path) -> None:
    found = record.load("resnet50", tmp_path, quick=True)
    assert [(n, tuple(t.shape)) for n, t in found.items()] == resnet50(width=8)
    rows = record.load("embedding", tmp_path, quick=True)["words.weight"]
    empty = float((rows.abs().sum(1) == 0).float().mean())
    assert len(rows) > 2000 and 0.5 < empty < 1  # row-sparse
    for named in (found, {"words": rows}):
        assert all(bool(torch.isfinite(t).all()) for t in named.values()) and any(bool(t.any()) for t in named.values())
    again = record.load("embedding", tmp_path, quick=True)["words.weight"]
    assert torch.equal(rows, again)
    with pytest.raises(ValueError, match="resnet50, transformer, embedding"):
        record.load("imagenet")


def test_a_mean_is_compared_with_the_best_of_its_size() -> None:
    flat = torch.arange(1.0, 1001.0)
    exact = cc.Bucket(flat, cc.Layout.of([("x", (1000,))]))
    best = cc.Bucket(torch.where(flat > 990, flat, 0.0), exact.layout)
    found = volume.compared(best, exact.flat, 120)
    assert (
        found["energy"] == pytest.approx(1) and found["k"] == 10 and found["elements"] == 3 and found["selected"] == 1
    )
    assert volume.compared(cc.Bucket(torch.zeros(1000), exact.layout), flat, 0)["energy"] == 0


@pytest.mark.slow
@pytest.mark.full
def test_the_benchmark_runs_end_to_end(programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--quick: the JSON has what the results page needs of every family, and the plot is a picture."""
    file, plot = tmp_path / "compressors.json", tmp_path / "compressors.png"
    options = f"--quick --json {file} --plot {plot} --recorded {tmp_path}".split()
    done = programs.script(ROOT / "benchmarks" / "compressors.py", *options, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    assert plot.read_bytes().startswith(b"\x89PNG")
    found = json.loads(file.read_text())
    assert found["benchmark"] == "compressors" and found["hardware"] and found["versions"] and found["commit"]
    due = {(data, repr(c)) for f in methods.FAMILIES for c in f.compressors() for data in found["data"]}
    assert {(r["data"], r["compressor"]) for r in found["rows"]} == due
    for row in found["rows"]:
        assert "note" in row or (row["relative_error"] >= 0 and row["bits_per_element"] > 0 and row["cosine"] <= 1)
    for row in found["speed"]:
        assert "note" in row or (row["encode_memcpy_ratio"] > 0 and row["decode_memcpy_ratio"] > 0)
    assert {r["world_size"] for r in found["volume"]} == {2, 4}
    monkeypatch.setattr(results_page, "RESULTS", tmp_path)
    assert all(
        f"`{r['compressor']}`" in results_page.compressors() for r in found["speed"] if "(" in r.get("compressor", "")
    )
    assert all(f"| `{kind}(" in results_page.volume() for kind in ("SparseAllReduce", "AllGather", "TwoPhase"))
