"""Two versions of the package side by side: the same benchmarks in turns, in one run, row by row.

    python benchmarks/before_after.py --before ../compcomm-before --rounds 5 --json benchmarks/results/before-after.json

FOLDER is a checkout of the other version whose ``.venv/bin/python`` imports it, kernels built. Each round runs every
benchmark once with either version, the first one by turns, so that a machine whose speed drifts slows both. A row's
ratio is the median over the rounds of after/before, kernels first being taken as multiples of memcpy of the same run;
``spread`` are the quartiles of those ratios. ``machine_code`` says which kernels differ at all.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from common import commit, write
from machine_code import compare

from compcomm.report.metrics import timing

HERE = Path(__file__).resolve().parents[1]
CONTROL = 2  # rounds of kernels that are the same machine code: what they differ by is the machine's noise
START = ["_GLOBAL__sub_I_isa.cpp", "cc_isa_best", "cc_isa_set"]  # which instruction set runs is chosen here, once
TWO_RANKS = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
REDUCERS = ("ErrorFeedback(TopK(ratio=0.01))", "ErrorFeedback(QSGD(bits=4))", "PowerSGD(rank=4)")
RUNS: dict[str, tuple[str, ...]] = {
    "exchange": (*TWO_RANKS, "benchmarks/exchange.py", "--no-peers", "--repeats", "7"),
    "kernels": (
        "benchmarks/kernels.py",
        "--backend",
        "native",
        "--repeats",
        "9",
        "--budget",
        "1",
        "--numel",
        "6400000",
    ),
    "overhead": (*TWO_RANKS, "benchmarks/overhead.py", "--steps", "20", "--reducer", *REDUCERS),
}


def run(folder: Path, name: str, out: Path) -> dict[tuple[str, ...], float]:
    """Seconds, or multiples of memcpy, by what says which row it is."""
    python = folder / ".venv/bin/python"
    surroundings = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [str(python), *RUNS[name], "--json", str(out)], cwd=folder, env=surroundings, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{name} in {folder} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    found: dict[tuple[str, ...], float] = {}
    for row in json.loads(out.read_text())["rows"]:
        if name == "kernels":
            found[row["op"], row["isa"]] = row["memcpy_ratio"]
        else:
            found[row["reducer"], "cold" if row.get("cold") else ""] = row["seconds"]
    return found


def library(folder: Path) -> Path:
    """The C++ library that a version loads."""
    asks = "import compcomm.ops.native; print(*{x.split()[-1] for x in open('/proc/self/maps') if 'libcompcomm' in x})"
    command = [str(folder / ".venv/bin/python"), "-c", asks]
    return Path(subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip())


def compared(seen: dict[str, dict[tuple[str, ...], dict[str, list[float]]]]) -> list[dict[str, Any]]:
    """A row for all that both versions measured."""
    rows: list[dict[str, Any]] = []
    for name, found in seen.items():
        for key, values in found.items():
            if len(values) < 2:
                continue
            pairs = [after / before for before, after in zip(values["before"], values["after"], strict=True)]
            ratio = timing(pairs)
            rows.append(
                {
                    "benchmark": name,
                    "row": " ".join(filter(None, key)),
                    "unit": "memcpy" if name == "kernels" else "s",
                    "before": median(values["before"]),
                    "after": median(values["after"]),
                    "ratio": ratio.median,
                    "spread": ratio.spread,
                    "least": min(values["after"]) / min(values["before"]),
                    "rounds": len(pairs),
                }
            )
    return rows


def main() -> None:
    options = arguments()
    folders = {"before": options.before.resolve(), "after": HERE}
    code = compare(*map(library, folders.values()))
    commits = {version: commit(folder) for version, folder in folders.items()}
    print(f"machine code of the kernels: {code}", file=sys.stderr, flush=True)
    seen: dict[str, dict[tuple[str, ...], dict[str, list[float]]]] = {name: {} for name in options.only}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(options.rounds):
            for name in options.only:
                if name == "kernels" and number >= CONTROL and code.get("changed") in ([], START):
                    continue
                for version in sorted(folders, reverse=bool(number % 2)):
                    for key, value in run(folders[version], name, Path(scratch) / "rows.json").items():
                        seen[name].setdefault(key, {}).setdefault(version, []).append(value)
                print(f"round {number + 1} of {options.rounds}: {name}", file=sys.stderr, flush=True)
                rows = compared(seen)
                if options.json:  # after each benchmark: what was measured stays where the rest is broken off
                    write(options.json, "before-after", rows, **commits, machine_code=code)
    for row in rows:
        print(f"{row['benchmark']:9} {row['row']:55} {row['before']:9.4f} {row['after']:9.4f} {row['ratio']:6.3f}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--before", type=Path, required=True, metavar="FOLDER", help="a checkout of the other version")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=sorted(RUNS), default=list(RUNS))
    parser.add_argument("--json", help="file for the rows")
    return parser.parse_args()


if __name__ == "__main__":
    main()
