"""The methods' pages: what each must say, bytes as a dry run counts them, measured figures as the results have them."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

import pytest

import compcomm as cc

from .pages import PAGES, ROOT, anchor, read, rows, sent

METHODS = [path for path in PAGES if path.startswith("docs/methods/") and not path.endswith("index.md")]
TABLE = "| MB per rank and step, ResNet-50 | 2 workers | 8 | 64 |"
NUMBER = re.compile(r"\d+\.\d+(?:e[+-]\d+)?|\d+(?= ?%)|\de[+-]\d+")
CODED = re.compile(
    r"`([^`]+)` takes ([\d.]+) times `memcpy` to code and ([\d.]+) to decode(?:, and loses (\S+) of the square of "
    r"Gaussian numbers, (\S+) of ResNet-50's gradient and (\S+) of an embedding's)?"
)
AVERAGED = re.compile(
    r"`([^`]+)` averages ResNet-50's gradient in ([\d.]+) s between (\d) hosts at (\d+) ([MG])bit/s"
    r"(?:, `([^`]+)` in ([\d.]+) s)?"
)


def result(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


@lru_cache
def text(path: str) -> str:
    """Without line breaks."""
    return " ".join(read(path).split())


@lru_cache
def measured(name: str) -> frozenset[str]:
    """All numbers of a section of the results."""
    sections = re.split(r"^## ", read("benchmarks/RESULTS.md"), flags=re.MULTILINE)[1:]
    (found,) = [s for s in sections if anchor(s.splitlines()[0]) == name]
    return frozenset(NUMBER.findall(found))


@pytest.mark.parametrize("path", METHODS)
def test_every_page_says_what_it_sends_keeps_needs_and_costs(path: str) -> None:
    for lead in ("sends", "keeps", "needs", "costs", "can go wrong"):
        assert f"**{lead}" in read(path).lower(), lead


@pytest.mark.parametrize("place", [0, *(pytest.param(place, marks=pytest.mark.full) for place in (1, 2))])
@pytest.mark.parametrize("path", [path for path in METHODS if "MB per rank and step" in read(path)])
def test_megabytes(path: str, place: int) -> None:
    found = rows(read(path), TABLE)
    assert len(found) > 1
    for call, *said in found:
        assert said[place] == f"{sent(call, (2, 8, 64)[place]) / 1e6:.2f}", call


@pytest.mark.parametrize("path", METHODS)
def test_what_is_quoted_stands_in_the_section_that_is_linked(path: str) -> None:
    for point in re.split(r"^- |\n\n", read(path), flags=re.MULTILINE):
        linked = re.findall(r"RESULTS\.md#([\w-]+)\)", point)
        if linked:
            plain = re.sub(r"`[^`]*`|\]\([^)]*\)", "", point)
            assert set(NUMBER.findall(plain)) <= frozenset().union(*map(measured, linked)), point


def test_times_and_errors_of_compressors() -> None:
    found, counted = result("compressors"), 0
    times = {cc.parse(r["compressor"]): r for r in found["speed"] if r.get("compressor", "blocks")[0].isupper()}
    errors = {(cc.parse(r["compressor"]), r["data"]): r.get("relative_error") for r in found["rows"]}
    for path in METHODS:
        for name, *said in CODED.findall(text(path)):
            c, counted = cc.parse(name), counted + 1
            due = [f"{times[c][f'{call}_memcpy_ratio']:.2f}" for call in ("encode", "decode")]
            due += [f"{errors[c, data]:.2g}" for data in ("gaussian", "resnet50", "embedding")]
            assert said == due if said[2] else said[:2] == due[:2], name
    assert counted > 18


def test_times_of_an_exchange() -> None:
    counted = 0
    for path in METHODS:
        for one, first, hosts, rate, unit, other, second in AVERAGED.findall(text(path)):
            found = result(f"exchange-{hosts}-hosts-{rate}{unit.lower()}bit")["rows"]
            seconds = {r["reducer"]: f"{r['seconds']:.4g}" for r in found if not r["cold"]}
            for name, said in ((one, first), (other, second)):
                if name:
                    assert said == seconds[name], name
                    counted += 1
    assert counted > 12


def test_what_comes_later_of_a_gradient_that_was_thrown_away() -> None:
    due = {r["reducer"]: f"{100 * r['skipped']:.0f}" for r in result("thrown-away")["rows"]}
    said = [q for path in METHODS for q in re.findall(r"under `([^`]+)` (\d+) % of one that was skipped", text(path))]
    assert len(said) > 4 and all(due[name] == share for name, share in said), said


def test_what_lgreco_gains() -> None:
    page, results = read("docs/methods/controllers/lgreco.md"), read("benchmarks/RESULTS.md")
    for name, one, ours in rows(page, "| recorded gradients"):
        line = rf"^\| {re.escape(name)}`? \| [\d.]+ \| {re.escape(one)} \| {re.escape(ours)} \|"
        assert re.search(line, results, re.MULTILINE), name
