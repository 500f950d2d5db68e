"""What the quickstart says of its steps: which measured time is the longest, and why less came no sooner."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import bounds


def row(reducer: str, payload: int, reached: float | None, step: float, steps: int, *times: float) -> dict[str, Any]:
    """``times``: compute, kernels, wire."""
    made: dict[str, Any] = {
        "link_seconds": None,
        "reducer": reducer, "payload_bytes_per_step": payload, "seconds_to_target": reached, "seconds_per_step": step,
        "steps": 500, "steps_to_target": None if reached is None else steps,
        **dict(zip(("compute_seconds", "kernel_seconds", "wire_seconds"), times, strict=True)),
    }  # fmt: skip
    return {**made, "bound": bounds.bound(made)}


EXACT = row("Exact()", 3200, 40.0, 0.300, 134, 0.080, 0.001, 0.270)
BF16 = row("Cast(bfloat16)", 1600, 12.0, 0.095, 126, 0.080, 0.002, 0.060)
FOUR = "ErrorFeedback(QSGD(bits=4, rounding='nearest'))"


@pytest.mark.parametrize(
    ("times", "longest"), [((0.3, 0.1, 0.2), "compute"), ((0.1, 0.3, 0.2), "kernels"), ((0.1, 0.2, 0.3), "wire")]
)
def test_the_longest_time_bounds(times: tuple[float, float, float], longest: str) -> None:
    made = row("Exact()", 1, 1.0, 1.0, 1, *times)
    assert made["bound"] == longest
    assert bounds.bound({**made, "link_seconds": 1.0}) == "wire"
    waits = {**made, "wire_seconds": 1.0, "link_seconds": 0.01}  # for a core, not for the link
    assert bounds.bound(waits) == ("compute" if longest == "compute" else "kernels")
    assert bounds.bound({**made, "wire_seconds": None, "kernel_seconds": None}) is None  # DDP alone tells no times


def test_four_bits_that_come_no_sooner_are_explained_by_what_was_measured() -> None:
    four = row(FOUR, 400, 12.5, 0.094, 133, 0.080, 0.004, 0.030)
    assert bounds.why([EXACT, BF16, four]) == (
        "QSGD(bits=4) + feedback sent 4 times less than Cast(bfloat16) and came no sooner: its steps took 94 ms where "
        "the other's took 95 ms, bound by compute (compute 80 ms, kernels 4 ms, wire 30 ms, in part side by side), and "
        "it needed 133 to that loss where the other needed 126."
    )
    never = row(FOUR, 400, None, 0.150, 0, 0.080, 0.140, 0.030)
    said = bounds.why([EXACT, BF16, never])
    assert "bound by kernels" in said and "did not reach that loss in 500 where the other needed 126" in said


def test_nothing_is_said_where_less_came_sooner_or_nothing_was_measured() -> None:
    sooner = row(FOUR, 400, 11.0, 0.090, 126, 0.080, 0.004, 0.030)
    assert bounds.why([EXACT, BF16, sooner]) == ""
    assert bounds.why([EXACT, {**BF16, "seconds_to_target": 50.0, "bound": None}]) == ""
    cores = {**EXACT, "bound": "compute"}
    assert bounds.why([cores, BF16, sooner]) == (
        "No row is bound by the wire: here the cores limit the steps, and not the link."
    )
    same = row("Exact()", 3200, 41.0, 0.300, 134, 0.080, 0.001, 0.270)
    assert bounds.why([EXACT, same]) == ""  # no fewer bytes
