"""What an attachment has done so far, as strict JSON and as text: what its columns mean is said under them."""

from __future__ import annotations

import json
from dataclasses import replace

from compcomm.engine.statistics import Counters, Report

NONE = Report("Exact()", 1, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0, {})


def test_what_is_no_finite_number_is_none() -> None:
    inf, nan = float("inf"), float("nan")
    assert NONE.ratio == inf and NONE.as_dict()["ratio"] is None
    lost = replace(NONE, bytes_sent=2.0, bytes_dense=4.0, relative_error={"a": inf, "b": nan, "c": 0.5, "d": None})
    found = json.loads(json.dumps(lost.as_dict(), allow_nan=False))
    assert found["relative_error"] == {"a": None, "b": None, "c": 0.5, "d": None} and found["ratio"] == 2.0


def test_counters_since_a_discard_and_since_a_resume() -> None:
    earlier = Counters(5, 5, 500, 1.0, 1.0, 1.0, 0.0, False)
    discarded = earlier._replace(step=4, steps=4, bytes_sent=520).since(earlier)
    assert (discarded.steps, discarded.bytes_sent, discarded.kernel_seconds) == (-1, 20, 0.0)
    resumed = earlier._replace(step=9, steps=6, bytes_sent=600, resumes=1)
    assert resumed.since(earlier) == resumed


NAMES = {"weight": 100, "bias": 10}
UNIFORM = Report(
    "TopK(ratio=0.01)", 2, 5, 10.0, 880.0, 0.1, 0.1, 0.1, 0, {"weight": 0.5, "bias": None},
    elements=NAMES, parameter_bytes={"weight": 16, "bias": 64},
)  # fmt: skip


def test_errors_and_dashes_are_explained_where_they_are() -> None:
    said = str(UNIFORM).splitlines()
    assert said[-5].split() == ["parameter", "elements", "bytes", "error"]
    assert said[-3].split() == ["bias", "10", "64", "-"]
    assert said[-2].startswith("  error: relative") and said[-2].endswith("fed back, not gone")
    assert said[-1].startswith("  -: the parameter travels exact")
    assert max(map(len, said)) < 100
    whole = str(replace(UNIFORM, relative_error=dict.fromkeys(NAMES, 0.5)))
    assert "fed back" in whole and "travels exact" not in whole


def test_without_errors_the_line_on_errors_is_left_out() -> None:
    said = str(replace(UNIFORM, relative_error={}, choices={"weight": 4.0}, tunable="bits"))
    assert "error" not in said and said.endswith("travels exact (or has no setting of its own)")


def test_whole_settings_are_integers() -> None:
    found = replace(UNIFORM, choices={"weight": 20000.0, "bias": 0.00125}, tunable="rank")
    lines = {line.split()[0]: line.split() for line in str(found).splitlines()}
    assert lines["weight"][3] == "20000" and lines["bias"][3] == "0.00125"


def test_the_rich_table_has_the_same_notes() -> None:
    assert str(UNIFORM.table().caption).count("\n") == 1


def test_more_parameters_than_are_shown_with_every_number_of_columns() -> None:
    many = {f"p{i}": 100 for i in range(20)}
    for errors in ({}, dict.fromkeys(many, 0.5)):
        for choices in ({}, dict.fromkeys(many, 4.0)):
            found = replace(UNIFORM, elements=many, parameter_bytes=many, relative_error=errors, choices=choices)
            said = str(found)
            assert ("and 8 more" in said) == bool(errors or choices)
            assert not (errors or choices) or said.count("p1 ") == 1
