"""Error against bytes for every compressor, on made and recorded gradients; speed; volume of sparse all-reduces.

    python benchmarks/compressors.py --json runs/compressors.json --plot runs/compressors.png   # under four minutes
    python benchmarks/compressors.py --only QSGD MinMax --no-speed --no-volume

One step, one message, no feedback: relative squared error |x - C(x)|^2/|x|^2, the cosine of x and C(x), and the bits
per element of the sections that are really sent (used bytes where a size varies), small parameters that travel exact
included. Recorded gradients come from `benchmarks/record.py`, which makes them in seconds. Speed is that of the public
encode (gradient added, residual left) and decode on one thread, in multiples of memcpy of the same vector.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import errors
import record
import speed
import torch
import volume
from common import write
from methods import FAMILIES, Family

import compcomm as cc
from compcomm.core.optional import need
from compcomm.report import curves, tables

NUMEL = 1 << 20
PATIENCE = 6.0  # seconds that a configuration may take on a data set
DATA = ("gaussian", "student-t", "resnet50", "transformer", "embedding")
Row = dict[str, Any]


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    families = [f for f in FAMILIES if not options.only or f.name.startswith(tuple(options.only))]
    unknown = [name for name in options.only or () if not any(f.name.startswith(name) for f in FAMILIES)]
    if unknown:
        known = ", ".join(sorted(f.name for f in FAMILIES))
        sys.exit(f"compressors.py: --only {' '.join(unknown)}: no family begins so. There are: {known}.")
    console = need("rich.console", "compressors.py").Console(width=None if sys.stdout.isatty() else 160)
    pace: dict[str, float] = {}
    rows: list[Row] = []
    for data in shown(DATA):
        made = data not in record.RECORDINGS
        named = (
            errors.synthetic(data, 1 << 14 if options.quick else NUMEL)
            if made
            else record.load(data, options.recorded, quick=options.quick)
        )
        rows += on(data, errors.flatten(named), made, families, pace)
    title = "relative squared error and bits sent per element, one step"
    console.print(tables.compressors(rows, title, DATA))
    fast: list[Row] = []
    if options.speed:
        v = speed.Vectors(1 << 16 if options.quick else options.numel)
        small = speed.Vectors(v.numel // 16)
        fast = [speed.family(f, v, small, *((1, 0.0) if options.quick else (15,))) for f in families]
        fast += speed.hadamard(v, 1 if options.quick else 15)
        console.print(tables.speeds(fast, f"{v.numel:,} numbers, one thread, in multiples of memcpy"))
    sent: list[Row] = volume.rows(options.quick) if options.volume else []
    if sent:
        console.print(tables.volumes(sent, "elements that a rank sends, in multiples of the k that it keeps"))
    if options.json:
        write(options.json, "compressors", rows, data=list(DATA), speed=fast, volume=sent, quick=options.quick)
        print(f"written: {options.json}")
    if options.plot:
        print(f"written: {curves.compressors(rows, options.plot, title, DATA)}", flush=True)


def shown(names: Sequence[str]) -> Iterable[str]:
    """The names, with a progress bar where a person looks on."""
    if not sys.stdout.isatty():
        return names
    return need("rich.progress", "compressors.py").track(names, "data sets", transient=True)


def on(data: str, gradient: cc.Bucket, made: bool, families: Sequence[Family], pace: dict[str, float]) -> list[Row]:
    """One row per configuration on one data set; where it would take too long, "note" says so.

    ``made``: may be made smaller for a family that asks for it. ``pace``: seconds per element of each configuration on
    the data set before.
    """
    found: list[Row] = []
    for family in families:
        for text in family.texts:
            compressor = cc.parse(text)
            row: Row = {"data": data, "family": family.name, "kind": family.kind, "compressor": repr(compressor)}
            found.append(row)
            x, largest = gradient, max(s.numel for s in gradient.layout.segments)
            if family.limit and largest > family.limit:
                if not made:
                    row["note"] = f"not measured: a parameter of {largest:,} elements, and {family.why}"
                    continue
                x = errors.flatten(errors.synthetic(data, family.limit))
            expected = pace.get(text, 0.0) * x.layout.numel * (1 + family.learns)
            if expected > PATIENCE:
                row["note"] = f"not measured: {x.layout.numel:,} elements would take about {expected:.0f} s"
                continue
            row |= errors.measure(compressor, x, family.learns, PATIENCE)
            pace[text] = row.pop("seconds") / x.layout.numel
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", action="extend", help="families whose name begins so")
    parser.add_argument("--numel", type=int, default=25_600_000, help="numbers in the vector for the speed")
    parser.add_argument("--no-speed", dest="speed", action="store_false")
    parser.add_argument("--no-volume", dest="volume", action="store_false")
    parser.add_argument("--recorded", type=Path, default=record.FOLDER, help="folder of the recorded gradients")
    parser.add_argument("--quick", action="store_true", help="small data, few repeats: shows that it runs")
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--plot", type=Path, help="PNG file for the curves")
    return parser.parse_args()


if __name__ == "__main__":
    main()
