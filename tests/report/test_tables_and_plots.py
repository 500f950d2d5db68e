"""Numbers, tables and plots of runs."""

from __future__ import annotations

import io
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from compcomm.core import optional
from compcomm.report import (
    metrics,
    plots,
    tables,
)

CURVE = [[0, 0, 0, 4.0], [10, 1e6, 5, 3.0], [20, 2e6, 10, 2.5]]
ROWS: list[dict[str, Any]] = [
    {
        "reducer": name, "curve": CURVE, "loss": 2.5, "steps": 10, "bytes_per_step": 2e5, "seconds_per_step": 2.0,
        "seconds_to_target": reached, "speedup": gain,
    }
    for name, reached, gain in (("Exact()", 20.0, 1.0), ("ErrorFeedback(SignScale())", None, None))
]  # fmt: skip


def text(table: Any, width: int = 160) -> str:
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=width).print(table)
    return out.getvalue()


def test_medians_come_with_the_quartiles() -> None:
    assert metrics.timing([5.0]) == (5.0, (5.0, 5.0))
    assert metrics.timing([1.0, 2.0, 4.0, 3.0, 9.0]) == (3.0, (2.0, 4.0))


def test_a_loss_has_settled_where_it_stays_below_the_target() -> None:
    assert metrics.time_to_loss([0, 1, 2, 3], [4, 2, 2.4, 1], 2.5) == 0.75  # falls once
    assert metrics.time_to_loss([0, 1, 2, 3], [4, 2, 3, 1], 2.5) == 2.25  # a dip first: the last way down counts
    assert metrics.time_to_loss([0, 1, 2], [4, 2, 3], 2.5) is None  # ends above
    assert metrics.time_to_loss([0, 1], [4, 3], 2.5) is None
    assert metrics.time_to_loss([5, 6], [2, 1], 2.5) == 5
    assert metrics.time_to_loss([0, 1], [4, 2.5], 2.5) == 1  # at the target is enough, as for the run that sets it


def test_losses_that_are_no_numbers_are_above_every_target() -> None:
    assert metrics.time_to_loss([0, 1, 2], [4, math.nan, 2], 2.5) == 2
    assert metrics.time_to_loss([0, 1, 2], [4, math.inf, 2], 2.5) == 2
    assert metrics.time_to_loss([0, 1], [4, math.nan], 2.5) is None


def test_training_table_shows_a_dash_where_the_target_was_not_reached() -> None:
    shown = text(tables.training(ROWS, "title", "note"))
    exact, sign = (next(line for line in shown.splitlines() if r["reducer"] in line) for r in ROWS)
    assert "200 kB" in exact and "1x" in exact and "2.5000" in exact
    assert sign.split()[-2:] == ["-", "-"]
    assert "predicted" not in shown


def test_the_longest_recommended_name_fits_into_100_columns() -> None:
    name = "ErrorFeedback(QSGD(bits=4, rounding='nearest'))"
    shown = text(tables.training([{**ROWS[0], "reducer": name, "bytes_per_step": 123e6}], "title", "note"), width=100)
    assert any(name in line for line in shown.splitlines())
    assert "speedup" in shown


def test_training_table_with_predictions() -> None:
    model = {"link": "100mbit", "seconds_per_step": 0.5, "seconds_to_target": None, "speedup": None}
    shown = text(tables.training([{**row, "predicted": model} for row in ROWS], "title"))
    assert "100mbit" in shown and "predicted" in shown


def test_training_table_says_what_bounds_a_step_where_that_is_known() -> None:
    rows = [{**ROWS[0], "bound": "wire"}, {**ROWS[1], "bound": None}]
    shown = text(tables.training(rows, "title", "note"), width=100).splitlines()
    assert [next(s for s in shown if r["reducer"] in s).split()[-1] for r in rows] == ["wire", "-"]
    model = {"link": "100mbit", "seconds_per_step": 0.5, "seconds_to_target": None, "speedup": None, "bound": "compute"}
    shown = text(tables.training([{**row, "predicted": model} for row in rows], "title")).splitlines()
    assert next(s for s in shown if "Exact()" in s).split()[-1] == "compute"


def test_exchange_table() -> None:
    row = {
        "reducer": "TopK(0.01)", "cold": True, "seconds": 0.05, "seconds_spread": (0.04, 0.06), "bytes_sent": 1e6,
        "payload_bytes": None, "relative_error": 0.5, "speedup": 12.345,
    }  # fmt: skip
    shown = text(tables.exchange([row], "title"))
    assert "cold" in shown and "0.04 to 0.06" in shown and "12.3x" in shown


def test_the_loss_axis_shows_all_curves_but_no_divergence() -> None:
    spike = {"curve": [[0, 0, 0, 4.0], [1, 1, 1, 3.0], [2, 2, 2, 90.0], [3, 3, 3, math.nan]]}
    low, high = plots.heights([*ROWS, {"curve": [*CURVE[:2], [20, 2e6, 10, 3.5]]}])
    assert low < 2.5 and 3.5 < high < 4.0
    low, high = plots.heights([*ROWS, spike])
    assert low < 2.5 and 4.0 < high < 4.2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_plot_is_a_picture_of_some_size(tmp_path: Path) -> None:
    file = plots.training(ROWS, tmp_path / "new" / "plot.png", "title")
    head = file.read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    assert int.from_bytes(head[16:20], "big") > 1200 and int.from_bytes(head[20:24], "big") > 400


def test_a_missing_package_is_named_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"matplotlib is not installed.*compcomm\[bench\]"):
        plots.training(ROWS, "nowhere.png", "title")
    assert optional.need("math", "test").sqrt(4.0) == 2.0
