"""`benchmarks/optimizers.py` in small: real runs of two ranks, their files, and what the results page makes of them."""

from __future__ import annotations

import argparse
import doctest
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import compcomm as cc

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import results_page  # noqa: E402
from momentum import convergence, extrapolation, methods, pictures, training  # noqa: E402
from tasks import load  # noqa: E402

from tests.fresh import Programs  # noqa: E402

SCRIPT = ROOT / "benchmarks" / "optimizers.py"


def read(file: Path, benchmark: str) -> dict[str, Any]:
    found = json.loads(file.read_text())
    assert found["benchmark"] == benchmark and found["hardware"] and found["versions"] and found["commit"]
    return found


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.py"
    file.write_text("def shapes():\n    return [('a.w', (30, 100)), ('a.b', (30,)), ('c', (8, 4, 3, 3))]\n")
    return file


@pytest.mark.multi
@pytest.mark.timeout(240)
def test_convergence(programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """40 steps of each on the digits: phases follow the schedule, and bytes fall with them."""
    file, plot = tmp_path / "optimizers-convergence-digits.json", tmp_path / "a.png"
    told = f"convergence --task=digits --steps=40 --seeds=1 --local-steps=2 --json={file} --plot={plot}"
    said = programs.ranks(2, SCRIPT, *told.split())
    assert "0/1 Adam" in said and plot.read_bytes().startswith(b"\x89PNG")
    found = read(file, "optimizers-convergence")
    assert "loopback" in found["link"] and found["task"] == "digits" and found["steps"] == 40
    ours = ["1-bit Adam", "1-bit Adam, L2 scale", "0/1 Adam", "0/1 Adam, L2 scale"]
    names = ["Adam", "Adam, fp16 hook", *ours, "LAMB", "1-bit LAMB"]
    assert [r["method"] for r in found["summary"]] == names
    assert [r["method"] for r in found["rows"]] == names
    for row in found["rows"]:
        assert row["world_size"] == 2 and row["steps"] == 40 and row["curve"][0][:3] == [0, 0, 0]
        assert row["curve"][-1] == [row["seconds"], row["bytes_per_step"] * 40, 40, row["loss"]]
        assert row["loss"] < row["area"] < row["curve"][0][3] and 0.3 < row["accuracy"] <= 1
        assert sum((p["stop"] - p["start"]) * p["bytes_per_step"] for p in row["phases"]) == pytest.approx(
            row["curve"][-1][1]
        )
        assert all(0 < p["payload_bytes_per_step"] < p["bytes_per_step"] for p in row["phases"])
    by_name = {r["method"]: r for r in found["summary"]}
    numel = sum(p.numel() for p in load("digits").model(0).parameters())
    layout = cc.Layout.of((n, p.shape) for n, p in load("digits").model(0).named_parameters())
    coded = cc.cost(cc.ErrorFeedback(cc.parse(methods.COMPRESSOR)), layout, 2).sent
    assert by_name["Adam"]["phases"][0]["payload_bytes_per_step"] == 4 * numel
    assert by_name["Adam, fp16 hook"]["phases"][0]["payload_bytes_per_step"] == 2 * numel
    for name in ("1-bit Adam", "1-bit Adam, L2 scale", "1-bit LAMB"):
        warm, compressed = by_name[name]["phases"]
        assert (warm["start"], warm["stop"], compressed["stop"]) == (0, 11, 40)  # the rate rises in ten steps
        assert warm["payload_bytes_per_step"] == pytest.approx(2 * numel, rel=0.01)
        assert compressed["payload_bytes_per_step"] == pytest.approx(coded)
        assert by_name[name]["last_ratio"] > 1  # the card is that of all programs here; payloads are not
    variance, grows, last = by_name["0/1 Adam"]["phases"]
    assert (variance["stop"], grows["stop"], last["stop"]) == (11, 14, 40) and by_name["0/1 Adam"]["interval"] == 2
    assert last["payload_bytes_per_step"] == pytest.approx(coded / 2)
    assert by_name["0/1 Adam"]["last_ratio"] > 1
    assert by_name["1-bit Adam"]["loss_difference"] is not None and by_name["1-bit Adam"]["ratio"] > 1
    assert by_name["Adam"]["loss_difference"] is by_name["LAMB"]["loss_difference"] is None
    monkeypatch.setattr(results_page, "RESULTS", tmp_path)
    text = results_page.optimizers()
    assert all(f"| {name} |" in text for name in names)
    same = {"task": "digits", "steps": 40, "seeds": 1, "compressor": methods.COMPRESSOR, "local_steps": 2}
    onto = argparse.Namespace(onto=file, **same)
    here, shared = argparse.Namespace(world=2), methods.setting("digits", None, None)
    assert [r["commit"] for r in convergence.earlier(onto, shared, here)] == [found["commit"]] * len(found["rows"])
    onto.steps = 41
    with pytest.raises(ValueError, match="steps is 40 there and 41 here"):
        convergence.earlier(onto, shared, here)


@pytest.mark.multi
@pytest.mark.full
def test_throughput(programs: Programs, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "optimizers-throughput-tiny.json"
    told = f"throughput --model={tiny} --wait=0.01 --local-steps=4 --repeats=1 --json={file}"
    programs.ranks(2, SCRIPT, *told.split())
    found = read(file, "optimizers-throughput")
    assert found["numel"] == 3318 and found["wait"] == 0.01 and "loopback" in found["link"]
    rows = {r["contestant"]: r for r in found["rows"]}
    assert list(rows) == ["no exchange", "fp16, Adam", "bf16, Adam", "fp32, Adam", "1-bit Adam", "0/1 Adam"]
    for row in rows.values():
        assert row["seconds"] > 0.01 and row["seconds_without_wait"] == pytest.approx(row["seconds"] - 0.01)
        assert row["repeats"] == 1 and row["world_size"] == 2
        assert row["speedup"] == pytest.approx(rows["fp16, Adam"]["seconds"] / row["seconds"])
        assert row["speedup_hidden"] < row["speedup"]
    assert rows["fp32, Adam"]["payload_bytes"] == 2 * rows["fp16, Adam"]["payload_bytes"] == 4 * 3318
    assert rows["0/1 Adam"]["payload_bytes"] == rows["1-bit Adam"]["payload_bytes"] / 4
    assert rows["0/1 Adam"]["interval"] == 4 and rows["0/1 Adam"]["bytes_sent"] > 0
    monkeypatch.setattr(results_page, "RESULTS", tmp_path)
    assert "| tiny, loopback | " in results_page.optimizers()
    programs.ranks(1, SCRIPT, "plot", f"--results={tmp_path}", f"--plot={tmp_path / 'bars.png'}")
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")
    assert pictures.where(found) == "2 ranks\nloopback"


@pytest.mark.slow
def test_arithmetic(programs: Programs, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "optimizers-arithmetic.json"
    programs.ranks(1, SCRIPT, "arithmetic", f"--model={tiny}", "--repeats=2", f"--json={file}")
    rows = read(file, "optimizers-arithmetic")["rows"]
    calls = [r["call"] for r in rows]
    assert {"memcpy", "AdamW(foreach=True)", "OneBitAdam, warm-up", "OneBitAdam, compressed phase"} < set(calls)
    assert {"ZeroOneAdam, local step", "OneBitLamb, warm-up", "OneBitLamb, compressed phase"} < set(calls)
    for row in rows:
        assert row["numel"] == 3318 and row["ratio"] == pytest.approx(row["seconds"] / row["adam_seconds"])
    monkeypatch.setattr(results_page, "RESULTS", tmp_path)
    assert all(f"| {call} |" in results_page.optimizers() for call in calls)


@pytest.mark.slow
def test_model(programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adam's all-reduce is that of the ring's formula, and the paper's figures are of the order of the model's."""
    file = tmp_path / "optimizers-model.json"
    said = programs.ranks(1, SCRIPT, "model", f"--json={file}")
    assert "predicted, not measured" in said
    found = read(file, "optimizers-model")
    assert found["numel"] == 336_226_108
    alone, hidden, shared, _ = found["rows"]
    ring = 126 * 50e-6 + 2 * 63 / 64 * 2 * found["numel"] * 8 / 4.1e9
    assert alone["dense_exchange_seconds"] == shared["dense_exchange_seconds"] == pytest.approx(ring)
    assert alone["exchange_seconds"] == pytest.approx(126 * 50e-6 + alone["payload_bytes"] * 8 / 4.1e9)
    assert alone["payload_bytes"] == pytest.approx(2 * 63 / 64 * found["numel"] * 1.0625 / 8, rel=0.05)
    assert shared["exchange_seconds"] > 2 * alone["exchange_seconds"] and hidden["speedup"] < alone["speedup"]
    assert shared["speedup"] < extrapolation.PUBLISHED["compressed"] < alone["speedup"]
    assert alone["end_to_end_0.25"] < alone["end_to_end_0.15"] < alone["speedup"]
    monkeypatch.setattr(results_page, "RESULTS", tmp_path)
    assert "Predicted, not measured" in results_page.optimizers() and "| published |" in results_page.optimizers()


def test_without_files_the_page_has_no_such_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results_page, "RESULTS", tmp_path)
    assert results_page.optimizers() == ""


@pytest.mark.parametrize("module", [training, extrapolation], ids=lambda m: m.__name__)
def test_docstrings(module: Any) -> None:
    assert doctest.testmod(module) == (0, 1 if module is training else 2)


def test_a_difference_is_held_against_the_yardsticks_noise() -> None:
    """That of its seeds, where there are several."""
    assert convergence._moments("loss", [{"loss": 1.0}, {"loss": 3.0}]) == {"loss": 2.0, "loss_std": 2**0.5}
    assert convergence._moments("loss", [{"loss": 1.0}]) == {"loss": 1.0, "loss_std": None}
    adam = {"loss": 2.0, "loss_std": 0.1}
    for loss, verdict in ((2.05, "within"), (1.95, "within"), (2.2, "above"), (1.8, "below"), (None, "diverged")):
        assert convergence.beside("loss", {"loss": loss}, adam)["loss_verdict"] == verdict
    assert convergence.beside("loss", adam, adam) == {"loss_difference": None, "loss_verdict": None}


@pytest.mark.parametrize("steps", [40, 320, 640])
def test_phases_cover_the_run(steps: int) -> None:
    """And the last one of 0/1 Adam lies where the interval is whole."""
    found = methods.methods(methods.SETTINGS["charlm"], steps, lambda s: min(1.0, (s + 1) / 20), cc.SignScale(), 4)
    for method in found:
        assert method.phases[0].start == 0 and method.phases[-1].stop == steps
        assert all(a.stop == b.start for a, b in zip(method.phases, method.phases[1:], strict=False))
        assert method.freeze is None or method.freeze > 20
    for method in (m for m in found if m.name.startswith("0/1 Adam")):
        last = method.phases[-1]
        assert last.interval == 4 and (last.stop - last.start) % 4 == 0
        assert method.freeze and last.start >= method.freeze + 2 * max(1, round(0.05 * steps))


def test_an_interval_that_no_doubling_reaches() -> None:
    with pytest.raises(ValueError, match="--local-steps 6: give a power of two"):
        methods.methods(methods.SETTINGS["digits"], 40, lambda s: 1.0, cc.SignScale(), 6)


def test_a_count_that_begins_anew_is_read_a_step_before() -> None:
    counted: dict[int, Any] = {0: None, 9: (9, 900.0), 10: (0, 0.0), 30: (20, 100.0)}
    assert training.payload(methods.Phase("warm-up", 0, 10), counted) == 100.0
    assert training.payload(methods.Phase("compressed", 10, 30), counted) == 5.0
    assert training.payload(methods.Phase("all", 0, 10), dict.fromkeys((0, 9, 10))) is None


@pytest.mark.parametrize("task", ["charlm", "digits"])
def test_the_compressor_is_what_the_docstring_says(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Near one bit with all of it coded; with 1-D parameters exact the transformer cannot come to 14 times.

    The size of the text's alphabet is a layer's: 65 characters, as in tinyshakespeare, whatever text is here.
    """
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "tinyshakespeare.txt").write_text("".join(map(chr, range(32, 97))) * 2000)
    monkeypatch.setenv("COMPCOMM_DATA", str(tmp_path))
    layout = cc.Layout.of((n, p.shape) for n, p in load(task).model(0).named_parameters())
    fp16 = 2 * (2 * layout.numel * 3 // 4)

    def ratio(text: str) -> float:
        return fp16 * 4 / sum(cc.cost(cc.ErrorFeedback(cc.parse(text)), layout, 4, rank).sent for rank in range(4))

    assert ratio(methods.COMPRESSOR) == pytest.approx(15.2, abs=0.06)
    exact = ratio("SignScale(block=2048)")
    assert exact == pytest.approx(12.4 if task == "charlm" else 14.1, abs=0.06)
