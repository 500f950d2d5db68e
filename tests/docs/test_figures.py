"""Figures on the pages are those of the committed JSON, or what the code computes; generated pages are up to date."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import compcomm as cc
from compcomm.plan.kernels import Kernels
from compcomm.plan.link import Link
from compcomm.plan.methods import default
from compcomm.plan.planner import plan
from compcomm.plan.result import span
from compcomm.plan.shapes import resnet50
from tests.patience import patience

from .pages import ROOT, blocks, read, rows, sent

README = read("README.md")
CHOOSING = read("docs/choosing.md")
LAYOUT = cc.Layout.of(resnet50())


def result(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def words(text: str) -> str:
    """Without line breaks."""
    return " ".join(text.split())


def test_the_results_page_is_that_of_the_json() -> None:
    command = [sys.executable, ROOT / "benchmarks" / "results_page.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patience(60))
    assert done.returncode == 0, done.stderr


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 200


def test_the_line_that_attach_says() -> None:
    four = cc.ErrorFeedback(cc.QSGD(bits=4, rounding="nearest"))
    cost = cc.cost(four, LAYOUT, 2)
    line = f"compcomm: {cc.settle(four, 2)!r} on 2 ranks: {cost.dense / 1e6:.2f} MB -> {cost.sent / 1e6:.2f} MB"
    assert f"{line} per rank and step ({cost.ratio:.1f}x)" in README


def test_the_quickstart_of_the_readme() -> None:
    due = [
        [r["reducer"], f"{r['seconds_to_target']:.1f}", _size(r["bytes_per_step"])]
        for r in result("quickstart")["rows"]
    ]
    assert rows(README, "| reducer |") == due


def _size(value: float) -> str:
    return f"{value / 1e6:.3g} MB" if value >= 1e6 else f"{value / 1e3:.3g} kB"


def test_the_plan_of_the_readme() -> None:
    found = result("plan-resnet50")
    (shown,) = [b.text for b in blocks(README) if b.text.startswith("resnet50:")]
    assert f"{found['numel']:,} elements in {len(found['bucket_elements'])} buckets, {found['workers']} work" in shown
    lines = shown.splitlines()[3 : 3 + len(found["rows"])]
    for line, row in zip(lines, found["rows"], strict=True):
        numbers = [
            *(f"{1e3 * row[key]:.1f}" for key in ("seconds", "exposed", "kernels", "wire")),
            f"{row['sent'] / 1e6:.2f}",
            f"{row['ratio']:.1f}x",
        ]
        pays = row["pays_bits_per_second"]
        gains = [f"{row[key]:.2f}x" for key in ("speedup_over_fp32", "speedup_over_bf16")]
        assert re.split(r" {2,}", line)[1:] == [
            *numbers, "-" if pays is None else ", ".join(span(*p) for p in pays), *gains,
        ]  # fmt: skip
        inner = re.sub(r"ErrorFeedback\((.*)\)$", r"\1 + feedback", row["method"])
        first = line.partition("  ")[0]
        short = inner.replace("()", "").replace("ratio=", "").replace(", rounding='nearest'", "")
        assert first == ("DDP without a hook" if row["method"] == "DDP" else short)
    assert f"{found['recommendation']['line']}\n  ({found['recommendation']['reason']})\n" in shown


def test_the_bytes_of_the_plan_are_those_of_today() -> None:
    """A dry run, in which nothing is measured: a change of a wire format makes the committed plan a stale one."""
    found = result("plan-resnet50")
    methods = default()
    today = plan(
        found["model"], found["workers"], Link(**found["link"]), compute=found["compute_seconds"], methods=methods,
        kernels={m.text: Kernels() for m in methods},
    )  # fmt: skip
    due = {row.prediction.method: (row.prediction.sent, row.prediction.wire) for row in today.rows}
    assert {row["method"]: (row["sent"], row["wire"]) for row in found["rows"]} == due


def test_the_bytes_that_the_text_quotes() -> None:
    text = words(CHOOSING)
    assert f"{_fewer('QSGD(bits=4)', 2):.1f} times fewer bytes than fp32" in text
    assert f"sends {_fewer('SignScale()', 2):.0f} times less" in text
    assert f"sends {_fewer('TopK(0.01)', 2):.0f} times less" in text
    (crossing,) = map(int, re.findall(r"from (\d+) of them on", text))
    assert [sent("TopK(0.01)", w) > sent("Cast(bfloat16)", w) for w in (crossing - 1, crossing)] == [False, True]
    ratios = sorted({round(_fewer("SparseAllReduce(TopK(0.01))", world)) for world in (4, 8, 16, 64)})
    assert len(ratios) == 2 and f"sends {ratios[0]} to {ratios[1]} times less whatever their number" in text


def _fewer(call: str, world: int) -> float:
    return sent(None, world) / sent(call, world)


def test_the_steps_that_the_text_quotes() -> None:
    rows = result("quickstart")["rows"]
    exact, _, four, one, sparse = (r["steps"] * r["seconds_to_target"] / r["seconds"] for r in rows)
    text = words(CHOOSING)
    assert f"{four:.0f} steps to the loss that took `Exact()` {exact:.0f}" in text
    assert f"needed {one / exact:.1f} times the steps: at 100" in text
    assert f"needed {sparse / exact:.1f} times the steps, so" in text


def test_the_comparison_of_compressors_that_the_text_quotes() -> None:
    found, text = result("compressors"), words(CHOOSING)
    errors = {(r["data"], r["compressor"]): r for r in found["rows"]}
    two = [errors[data, "Rotated(LloydMax(2))"]["relative_error"] for data in found["data"]]
    assert {f"{error:.2f}" for error in two} == {"0.12"} and "(0.12 of the square at 2 bits)" in text
    timed = {r["compressor"]: r for r in found["speed"] if "encode_memcpy_ratio" in r and "compressor" in r}
    cost = {name: r["encode_memcpy_ratio"] + r["decode_memcpy_ratio"] for name, r in timed.items()}
    rotated, plain = cost["Rotated(LloydMax(4))"], cost["QSGD(bits=4, rounding='nearest')"]
    assert f"costs {rotated:.1f} times `memcpy` to code and decode, 4 bits of `QSGD` cost {plain:.1f}" in text
    elias = errors["embedding", "QSGD(levels=64, norm=2, coding='elias')"]
    quoted = f"takes {elias['bits_per_element']:.2f} bits per element for an error of {elias['relative_error']:.3f}"
    assert quoted in text
    coded = timed["QSGD(levels=16, norm=2, coding='elias')"]
    assert round(coded["encode_memcpy_ratio"]) == 10 and round(coded["decode_memcpy_ratio"]) == 9
    assert "about ten times `memcpy` to code and nine to decode" in text


def test_the_exchanges_that_the_text_quotes() -> None:
    text = words(CHOOSING)
    four = {r["reducer"]: r["seconds"] for r in result("exchange-4-hosts-1gbit")["rows"]}
    dealt, gathered = (
        four["ErrorFeedback(SparseAllReduce(TopK(ratio=0.01)))"],
        four["ErrorFeedback(TopK(ratio=0.01))"],
    )
    assert f"({dealt:.3f} s against {gathered:.3f} s for ResNet-50)" in text
    two = {r["reducer"]: r["speedup"] for r in result("exchange-2-hosts-1gbit")["rows"]}
    assert f"{two['PowerSGD(4)']:.1f} times sooner than `Exact()` between two hosts at 1 Gbit/s" in text


def test_the_trainings_that_the_text_quotes() -> None:
    text = words(CHOOSING)
    (dgc,) = [r for r in result("convergence-charlm")["rows"] if r["reducer"].startswith("DGC(")]
    assert f"sends {dgc['ratio']:.0f} times fewer bytes" in text
    sooner = {
        rate: {r["contestant"]: r for r in result(f"optimizers-throughput-resnet50-2-hosts-{rate}")["rows"]}
        for rate in ("100mbit", "1gbit")
    }
    slow, fast = (sooner[rate]["1-bit Adam"]["speedup"] for rate in ("100mbit", "1gbit"))
    assert f"{slow:.1f} times sooner than the fp16 hook with Adam between two hosts at 100 Mbit/s" in text
    assert f"{fast:.1f} times at 1 Gbit/s" in text
    run = {r["method"]: r["ratio"] for r in result("optimizers-convergence-digits")["summary"]}
    assert f"sends {run['1-bit Adam']:.1f} times less over a run" in text
