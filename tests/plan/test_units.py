"""Rates and times: every form that people write, bits and bytes apart, and nonsense refused with the forms."""

from __future__ import annotations

import pytest

from compcomm.plan import units
from compcomm.plan.link import Link


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
        ("125 megabyte/s", 1e9),
        ("100mbit", 1e8),
        ("2.5 Gbit/sec", 2.5e9),
        ("1e9 bit/s", 1e9),
        ("1 KiB/s", 8192.0),
        ("1 TBIT", 1e12),
        ("1 gigabit/s", 1e9),
        ("100 megabit/s", 1e8),
        ("1 gigabyte/s", 8e9),
        ("1 Kilobits/sec", 1e3),
    ],
)
def test_rates(text: str, bits: float) -> None:
    assert units.bandwidth(text) == bits


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("50us", 5e-5),
        ("50 µs", 5e-5),
        ("3 ms", 3e-3),
        ("0.2", 0.2),
        ("0.2s", 0.2),
        (".5s", 0.5),
        ("0", 0.0),
        (2, 2.0),
        ("1 sec", 1.0),
        ("2 seconds", 2.0),
        ("1 Second", 1.0),
        ("3 msec", 3e-3),
    ],
)
def test_times(text: str | float, seconds: float) -> None:
    assert units.seconds(text) == seconds


def test_a_latency_in_a_text_says_of_what() -> None:
    """50 would be 50 seconds; numbers in Python are seconds, as everywhere."""
    for bare in ("50", "0.00005", "5e1"):
        with pytest.raises(ValueError, match=r"latency\('.*'\): of what\? Give a unit: 50us, 50ms"):
            Link.of("1gbit", bare)
    assert [Link.of("1gbit", given).latency for given in ("50us", "0", 5e-5, 0.0)] == [5e-5, 0.0, 5e-5, 0.0]
    for nonsense in ("soon", "5 h", "-1us"):
        with pytest.raises(ValueError, match="Understood: 50us"):
            units.latency(nonsense)


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
