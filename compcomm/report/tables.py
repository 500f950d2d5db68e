"""Tables of runs for the terminal. Needs rich (`compcomm[bench]`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..core.tables import table

Row = Mapping[str, Any]


def number(value: float | None, unit: str = "") -> str:
    """Three digits that matter, with k, M or G where the number is long; a dash for None.

    >>> number(0.04321, " s"), number(1_234_567, "B"), number(None), number(0.0)
    ('0.0432 s', '1.23 MB', '-', '0')
    """
    if value is None:
        return "-"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.3g} {letter}{unit.strip()}"
    return f"{value:.3g}{unit}" if abs(value) < 1000 else f"{value:.0f}{unit}"


def training(rows: Sequence[Row], title: str, note: str = "") -> Any:
    """Rows of ``benchmarks/train.py``: loss, steps, traffic, the time to the loss that the first row ends with, and
    what bounds a step where that was measured."""
    predicted, bounded = any("predicted" in row for row in rows), any("bound" in row for row in rows)
    columns = ["reducer", "loss", "steps", "bytes\n/step", "ms\n/step", "s to\ntarget", "speedup"]
    columns += ["bound\nby"] * bounded
    if predicted:
        link = next(row["predicted"]["link"] for row in rows if "predicted" in row)
        columns += [f"{link}:\n{what}" for what in ("ms/step", "s to target", "speedup", *["bound by"] * bounded)]
        note = f"{note} {link}: predicted, the measured step and after it the payload at that rate.".strip()
    lines: list[list[str]] = []
    for row in rows:
        line = [
            row["reducer"],
            f"{row['loss']:.4f}",
            str(row["steps"]),
            number(row["bytes_per_step"], " B"),
            digits(row["seconds_per_step"], 1e3),
            digits(row["seconds_to_target"]),
            times(row["speedup"]),
        ]
        line += [row.get("bound") or "-"] * bounded
        if predicted:
            model = row["predicted"]
            pace, reached = digits(model["seconds_per_step"], 1e3), digits(model["seconds_to_target"])
            line += [pace, reached, times(model["speedup"])]
            line += [model.get("bound") or "-"] * bounded
        lines.append(line)
    return table(title, columns, lines, note)


def exchange(rows: Sequence[Row], title: str, note: str = "") -> Any:
    """Rows of ``benchmarks/exchange.py``: the time to average one gradient, its traffic, and its error."""
    columns = ["reducer", "hints", "seconds", "half of all", "bytes", "payload", "relative\nerror", "speedup"]
    lines = [
        [
            row["reducer"],
            "cold" if row["cold"] else "",
            number(row["seconds"]),
            f"{number(row['seconds_spread'][0])} to {number(row['seconds_spread'][1])}",
            number(row["bytes_sent"], " B"),
            number(row["payload_bytes"], " B"),
            number(row["relative_error"]),
            times(row["speedup"]),
        ]
        for row in rows
    ]
    return table(title, columns, lines, note)


def compressors(rows: Sequence[Row], title: str, data: Sequence[str], note: str = "") -> Any:
    """Rows of ``benchmarks/compressors.py``: error and bits per element of each configuration on each data set."""
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        error = row.get("relative_error")
        bits = number(row.get("bits_per_element"))
        cells.setdefault(row["compressor"], {})[row["data"]] = "-" if error is None else f"{error:.2e} {bits:>5}"
    columns = ["compressor", *(f"{name}:\nerror   bits" for name in data)]
    return table(title, columns, ([c, *(found.get(name, "-") for name in data)] for c, found in cells.items()), note)


def speeds(rows: Sequence[Row], title: str, note: str = "") -> Any:
    """Speed of encoding and decoding in multiples of memcpy, beside what is asked for."""
    columns = ["family", "compressor", "encode", "decode", "goal", "note"]
    lines = [
        [
            row["family"],
            row.get("compressor", "-"),
            *(
                "-" if f"{call}_seconds" not in row else f"{row[f'{call}_memcpy_ratio']:.2f}"
                for call in ("encode", "decode")
            ),
            number(row.get("goal")),
            row.get("note", ""),
        ]
        for row in rows
    ]
    return table(title, columns, lines, note)


def volumes(rows: Sequence[Row], title: str, note: str = "") -> Any:
    """Elements sent in multiples of k, the energy of what was selected, and the error of the mean."""
    columns = ["reducer", "workers", "elements / k", "selected / k", "energy", "relative\nerror"]
    lines = [
        [
            row["reducer"],
            str(row["world_size"]),
            *(f"{row[column]:.2f}" for column in ("elements", "selected", "energy")),
            number(row["relative_error"]),
        ]
        for row in rows
    ]
    return table(title, columns, lines, note)


def digits(value: float | None, scale: float = 1.0) -> str:
    """One digit after the point, so that a column lines up; a dash for None.

    >>> digits(0.0709, 1e3), digits(39.93), digits(None)
    ('70.9', '39.9', '-')
    """
    return "-" if value is None else f"{value * scale:.1f}"


def times(factor: float | None) -> str:
    """A ratio of times.

    >>> times(2.5), times(None)
    ('2.5x', '-')
    """
    return "-" if factor is None else f"{factor:.3g}x"
