"""What an attachment has done so far, as strict JSON."""

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
