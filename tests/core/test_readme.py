"""The README's code runs, its table of methods says what the code says, and its results are those of the JSON."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import compcomm as cc
from compcomm.plan.shapes import resnet50

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_example_of_a_compressor_is_certified(tmp_path: Path) -> None:
    (block,) = [b for b in BLOCKS if "check_compressor" in b]
    (tmp_path / "example.py").write_text(block)
    done = subprocess.run([sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_reducers_are_shown_as_they_are_made() -> None:
    (block,) = [b for b in BLOCKS if "cc.Warmup(500" in b]
    for line in block.splitlines():
        text = line.partition("#")[0].strip()
        made = eval(text, {"cc": cc})
        assert cc.parse(text.replace("cc.", "") if "parse" not in text else repr(made)) == made


ROWS = [
    (cells[0].strip("` "), cells)
    for cells in (
        [c.strip() for c in line.strip("|").split("|")] for line in README.splitlines() if line.startswith("| `")
    )
    if len(cells) == 8
]


@pytest.mark.parametrize(("call", "cells"), ROWS, ids=[call for call, _ in ROWS])
def test_the_table_of_methods(call: str, cells: list[str]) -> None:
    example = call.replace("(ratio)", "(0.01)").replace("bits", "bits=4").replace("(c)", "(QSGD(bits=4))")
    made = cc.parse(example)
    linear, unbiased, delta, route = cells[3], cells[4], cells[5], cells[6]
    if "as c" not in linear:
        assert made.linear is (not linear.startswith("no")), linear
    assert made.unbiased is unbiased.startswith("yes"), unbiased
    assert (made.delta(1 << 20) is None) is (delta == "none" or "where positive" in delta), delta
    match = re.fullmatch(r"([\d.]+|bits)( \+ (\d+)/(\d+))?", cells[2])
    if match:
        code = 4.0 if match[1] == "bits" else float(match[1])
        due = code + (int(match[3]) / int(match[4]) if match[2] else 0)
        assert made.section(1 << 20) * 8 / (1 << 20) == pytest.approx(due, abs=1e-3), cells[2]
    omega = re.search(r"omega ([\d./]+)( at 4 bits)?\)", unbiased)
    if omega:
        assert made.omega(1 << 20) == pytest.approx(eval(omega[1]), rel=0.01), unbiased
    promise = re.match(r"([\d./]+)( at 4 bits)?( \(|$)", delta)
    if promise:
        assert made.delta(1 << 20) == pytest.approx(eval(promise[1]), rel=0.02), delta
    routes = {"all-reduce": cc.AllReduce, "all-gather": cc.AllGather, "two-phase": cc.TwoPhase, "as c": cc.TwoPhase}
    assert isinstance(cc.settle(made, 8), routes[route]), route


def test_every_exported_compressor_is_in_the_table() -> None:
    found = {call.partition("(")[0] for call, _ in ROWS}
    exported = {
        name
        for name in cc.__all__
        if isinstance(getattr(cc, name), type) and issubclass(getattr(cc, name), cc.Compressor)
    }
    assert exported - {"Compressor"} == found


def test_the_results_are_those_of_the_json() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/readme.py", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_the_bytes_that_the_text_quotes() -> None:
    layout = cc.Layout.of(resnet50())
    four = cc.cost(cc.ErrorFeedback(cc.QSGD(bits=4, rounding="nearest")), layout, 2)
    assert f"{four.dense / 1e6:.2f} MB -> {four.sent / 1e6:.2f} MB per rank and step ({four.ratio:.1f}x)" in README
    assert f"sends {cc.cost(cc.ErrorFeedback(cc.SignScale()), layout, 2).ratio:.0f} times less" in README
    assert f"sends {cc.cost(cc.ErrorFeedback(cc.TopK(ratio=0.01)), layout, 2).ratio:.0f} times less" in README
    crossing = next(w for w in range(2, 200) if _sent(cc.TopK(ratio=0.01), w) > _sent(cc.Cast(torch.bfloat16), w))
    assert f"from {crossing} of them on" in README


def test_the_table_of_routes() -> None:
    layout = cc.Layout.of(resnet50())
    lines = README.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| route |"))
    found = 0
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        call, _, megabytes, _ = (c.strip(" `") for c in line.strip("|").split("|"))
        assert megabytes == f"{cc.cost(cc.parse(call), layout, 64).sent / 1e6:.2f}", call
        found += 1
    assert found == 5
    ratios = {round(cc.cost(cc.SparseAllReduce(cc.TopK(0.01)), layout, w).ratio) for w in (4, 8, 16)}
    assert ratios == {58} and "sends 58 times less whatever their number" in README


def test_the_comparison_that_the_text_quotes() -> None:
    results = ROOT / "benchmarks/results"
    found = json.loads((results / "compressors.json").read_text())
    rows = {(r["data"], r["compressor"]): r for r in found["rows"]}
    two = [rows[data, "Rotated(LloydMax(2))"]["relative_error"] for data in found["data"]]
    assert {f"{error:.2f}" for error in two} == {"0.12"} and "(0.12 of the square at 2 bits)" in README
    timed = [r for r in found["speed"] if "encode_memcpy_ratio" in r and "compressor" in r]
    cost = {r["compressor"]: r["encode_memcpy_ratio"] + r["decode_memcpy_ratio"] for r in timed}
    rotated, plain = cost["Rotated(LloydMax(4))"], cost["QSGD(bits=4, rounding='nearest')"]
    assert f"costs {rotated:.1f} times `memcpy` to code and decode, 4 bits of `QSGD` cost {plain:.1f}" in README
    elias = rows["embedding", "QSGD(levels=64, norm=2, coding='elias')"]
    quoted = f"takes {elias['bits_per_element']:.2f} bits per element for an error of {elias['relative_error']:.3f}"
    assert quoted in README
    hosts = json.loads((results / "exchange-4-hosts-1gbit.json").read_text())["rows"]
    seconds = {r["reducer"]: r["seconds"] for r in hosts}
    dealt, gathered = (
        seconds["ErrorFeedback(SparseAllReduce(TopK(ratio=0.01)))"],
        seconds["ErrorFeedback(TopK(ratio=0.01))"],
    )
    assert f"({dealt:.3f} s against {gathered:.3f} s for ResNet-50)" in README


def _sent(compressor: cc.Compressor, world: int) -> int:
    return cc.cost(compressor, cc.Layout.of(resnet50()), world).sent


def test_the_table_of_what_is_thrown_away() -> None:
    for row in json.loads((ROOT / "benchmarks/results/thrown-away.json").read_text())["rows"]:
        reducer = cc.parse(row["reducer"])
        several = "right" if cc.settle(reducer, 2).traits.accumulates else "wrong: use `passes`"
        line = f"| `{row['reducer']}` | {100 * row['skipped']:.0f} % | {row['clipped']:.1f} | {several} |"
        assert line in README


def test_the_steps_that_the_text_quotes() -> None:
    rows = json.loads((ROOT / "benchmarks/results/quickstart.json").read_text())["rows"]
    exact, _, four, one, sparse = (r["steps"] * r["seconds_to_target"] / r["seconds"] for r in rows)
    assert f"{four:.0f} steps to the loss that took `Exact()` {exact:.0f}" in README
    assert f"needed {one / exact:.1f} times the steps: at 100" in README
    assert f"needed {sparse / exact:.1f} times the steps, so" in README
