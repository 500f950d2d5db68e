"""Rates and times: every form that people write, bits and bytes apart, and nonsense refused with the forms."""

from __future__ import annotations

import pytest

from compcomm.plan import units


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("1 Gbps", 1e9),
        ("1gbit", 1e9),
        ("1Gbit/s", 1e9),
        ("1 Gb", 1e9),
        ("1 GB", 8e9),
        ("125 MB/s", 1e9),
        ("125MB/s", 1e9),
        ("125MBps", 1e9),
        ("125 megabyte/s".replace("mega", "m"), 1e9),
        ("100mbit", 1e8),
        ("2.5 Gbit/sec", 2.5e9),
        ("1e9 bit/s", 1e9),
        ("1 KiB/s", 8192.0),
        ("1 TBIT", 1e12),
    ],
)
def test_rates(text: str, bits: float) -> None:
    assert units.bandwidth(text) == bits


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("50us", 5e-5), ("50 µs", 5e-5), ("3 ms", 3e-3), ("0.2", 0.2), ("0.2s", 0.2), (".5s", 0.5), ("0", 0.0), (2, 2.0)],
)
def test_times(text: str | float, seconds: float) -> None:
    assert units.seconds(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "fast", "-1gbit", "0gbit", "1 gxit", "1 Gbit/h", "1 m", "inf", "1e999 bit", "gbit"]
)
def test_no_rate(text: str) -> None:
    with pytest.raises(ValueError, match=r"bandwidth\(.*Understood: 1gbit"):
        units.bandwidth(text)


def test_a_bare_number_does_not_say_whether_it_counts_bits() -> None:
    with pytest.raises(ValueError, match=r"bandwidth\('1000'\): bits or bytes\?"):
        units.bandwidth("1000")


@pytest.mark.parametrize("text", ["", "-1", "soon", "5 h", "nan", float("nan"), float("inf"), -1.0])
def test_no_time(text: str | float) -> None:
    with pytest.raises(ValueError, match=r"seconds\(.*Understood: 50us"):
        units.seconds(text)
