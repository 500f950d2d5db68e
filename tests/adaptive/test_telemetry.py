"""A controller's telemetry as people read it."""

from __future__ import annotations

from typing import Any

import numpy as np

from compcomm.adaptive.telemetry import Telemetry


def table(m: int = 2, **changed: Any) -> Telemetry:
    given: dict[str, Any] = {
        "names": tuple(f"layer{i}" for i in range(m)),
        "numel": np.arange(1, m + 1) * 1000,
        "settings": (2, 4, 8),
        "norms": np.full(m, 2.0),
        "before": np.full(m, 1.0),
        "errors": np.tile([1.0, 0.5, 0.25], (m, 1)),
        "sizes": np.tile([100, 200, 4000], (m, 1)),
        "current": np.full(m, 2),
        "reference": np.full(m, 1),
        "first": False,
    }
    return Telemetry(**{**given, **changed})


def test_settings_are_shown_by_value_the_largest_parameter_first() -> None:
    said = str(table()).splitlines()
    assert said[0] == "2 parameters, 3 settings from 2 to 8: 8,000 bytes in use, 400 without"
    assert said[2].split() == ["layer1", "2,000", "2", "8", "0.1250", "4,000", "4", "0.2500", "200"]
    assert said[3].split()[0] == "layer0" and not any("measured" in line for line in said)
    assert repr(table()).startswith("Telemetry(names=('layer0', 'layer1'), numel=array(")


def test_errors_that_nobody_measured_say_so() -> None:
    said = str(table(errors=np.full((2, 3), np.nan)))
    assert said.count("not measured") == 4 and "nan" not in said and "nothing measured yet" not in said


def test_before_the_first_measurement_it_says_when_that_comes() -> None:
    zero = np.zeros(2)
    said = str(table(norms=zero, before=zero, errors=np.zeros((2, 3)), first=True)).splitlines()
    assert said[2].split() == ["layer1", "2,000", "-", "8", "-", "4,000", "4", "-", "200"]
    assert said[-1] == "  nothing measured yet: the first measurement comes at the end of the first period"


def test_many_parameters_and_none() -> None:
    said = str(table(160)).splitlines()
    assert len(said) < 20 and max(map(len, said)) < 120
    rest = next(line.split() for line in said if "148 more" in line)
    assert rest == ["and", "148", "more", f"{1000 * 148 * 149 // 2:,}", "592,000", "29,600"]
    assert str(table(0, errors=np.zeros((0, 3)), sizes=np.zeros((0, 3), np.int64))).startswith("0 parameters")


def test_numbers_that_are_not_finite() -> None:
    said = str(table(norms=np.array([np.inf, 0.0]), errors=np.array([[np.inf] * 3, [0.0] * 3])))
    assert "nan" not in said and "0.0000" in said
