"""Rates and times as people write them. Bits and bytes are never confused: ``1 Gb`` is an eighth of ``1 GB``."""

from __future__ import annotations

import re
from math import isfinite

_NUMBER = re.compile(r"\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*(.*?)\s*", re.IGNORECASE)
_PER_SECOND = re.compile(r"\s*(?:/\s*s(?:ec(?:ond)?)?|p\s*s)?$", re.IGNORECASE)
_PREFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "kilo": 1e3, "mega": 1e6, "giga": 1e9, "tera": 1e12}
_BINARY = {"ki": 2.0**10, "mi": 2.0**20, "gi": 2.0**30, "ti": 2.0**40}
_SECONDS = re.compile(r"sec(?:ond)?s?$", re.IGNORECASE)
_TIMES = {"": 1.0, "s": 1.0, "ms": 1e3, "us": 1e6, "\u00b5s": 1e6, "\u03bcs": 1e6, "ns": 1e9}
"""How many make a second; micro has two characters in Unicode."""
RATES = "1gbit, 1 Gbit/s, 1 Gbps, 100mbit, 125 MB/s or 125MBps (b or bit: bits, B or byte: bytes)"
TIMES = "50us, 3 ms, 0.2s or 0.2 (seconds)"
LATENCIES = "50us, 50ms or 0.05s"


def bandwidth(text: str) -> float:
    """Bits per second of a rate.

    Prefixes are powers of 1000 (``Ki``, ``Mi``, ``Gi``: of 1024), in either case; a lone ``b`` is a bit, ``B`` a byte.

    Raises:
        ValueError: no rate, or a bare number, which does not say whether it counts bits or bytes.

    >>> bandwidth("1gbit"), bandwidth("125 MB/s"), bandwidth("1 Gb"), bandwidth("1 GB")
    (1000000000.0, 1000000000.0, 1000000000.0, 8000000000.0)
    """
    call = f"bandwidth({text!r})"
    number, unit = _split(text, call, "a rate", RATES)
    if not unit:
        raise ValueError(f"{call}: bits or bytes? Give a unit: {RATES}.")
    unit = _PER_SECOND.sub("", unit)
    found = re.fullmatch(r"((?:kilo|mega|giga|tera|[kmgt]i?)?)(b|bits?|bytes?)", unit, re.IGNORECASE)
    scale = {**_PREFIXES, **_BINARY}.get(found[1].lower()) if found else None
    if found is None or scale is None:
        raise ValueError(f"{call}: {unit!r} is no unit of a rate. Understood: {RATES}.")
    bits = 8 if found[2] == "B" or found[2].lower().startswith("byte") else 1
    return _positive(number * scale * bits, call, RATES)


def seconds(text: str | float, *, zero: bool = True) -> float:
    """Seconds of a time; a bare number counts seconds.

    Raises:
        ValueError: no time, or one that is negative (zero, where ``zero`` is False).

    >>> seconds("50us"), seconds("3 ms"), seconds("0.2"), seconds(0.2)
    (5e-05, 0.003, 0.2, 0.2)
    """
    call = f"seconds({text!r})"
    number, unit = (float(text), "") if isinstance(text, int | float) else _split(text, call, "a time", TIMES)
    scale = _TIMES.get(_SECONDS.sub("s", unit).lower())
    if scale is None:
        raise ValueError(f"{call}: {unit!r} is no unit of time. Understood: {TIMES}.")
    if number == 0 and zero:
        return 0.0
    return _positive(number / scale, call, TIMES)


def latency(text: str | float) -> float:
    """Seconds of a latency: a number is seconds, and a text needs a unit, since "50" is hardly meant as 50 seconds.

    Raises:
        ValueError: no time, or a bare number in a text other than "0".

    >>> latency("50us"), latency("0"), latency(5e-05)
    (5e-05, 0.0, 5e-05)
    """
    if isinstance(text, str):
        number, unit = _split(text, f"latency({text!r})", "a time", LATENCIES)
        if number and not unit:
            raise ValueError(f"latency({text!r}): of what? Give a unit: {LATENCIES}.")
    return seconds(text)


def rate(bits: float) -> str:
    """Bits per second in words.

    >>> rate(1e9), rate(2.5e8), rate(float("inf"))
    ('1 Gbit/s', '250 Mbit/s', 'any link')
    """
    if not isfinite(bits):
        return "any link"
    for scale, name in ((1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s")):
        if bits >= scale:
            return f"{bits / scale:.3g} {name}"
    return f"{bits:.3g} bit/s"


def duration(value: float) -> str:
    """Seconds in words.

    >>> duration(5e-05), duration(0.2), duration(12.0), duration(0.0)
    ('50 us', '200 ms', '12 s', '0 s')
    """
    for scale, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if value >= scale:
            return f"{value / scale:.3g} {name}"
    return f"{value:.3g} s"


def _split(text: object, call: str, what: str, forms: str) -> tuple[float, str]:
    found = _NUMBER.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise ValueError(f"{call}: not {what}. Understood: {forms}.")
    return float(found[1]), found[2]


def _positive(value: float, call: str, forms: str) -> float:
    if not (value > 0 and isfinite(value)):
        raise ValueError(f"{call}: {value:g} is not a positive, finite number. Understood: {forms}.")
    return value
