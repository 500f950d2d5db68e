"""The fuzzer's command line: cases in a process of their own, so that one that ends it or does not end is named."""

from __future__ import annotations

import argparse
import faulthandler
import mmap
import subprocess
import sys
import tempfile
from time import monotonic

from tests.fuzz.cases import run

STUCK = 120.0
"""Seconds that one case may take, all implementations together."""


def main(arguments: list[str] | None = None) -> int:
    """Fuzzes until the time is over (0) or a case has failed (1)."""
    parser = argparse.ArgumentParser("python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    parser.add_argument("--only", type=int, help="one case alone, in this process")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.only is not None:
        print(run(given.seed, given.only))
        return 0
    return _inside(given) if given.inside else _outside(given)


def _outside(given: argparse.Namespace) -> int:
    """Watches over a process that says in a file which case it is at."""
    with tempfile.NamedTemporaryFile() as place:
        place.write(given.first.to_bytes(8, "little"))
        place.flush()
        command = [sys.executable, "-m", "tests.fuzz", "--seed", str(given.seed), "--first", str(given.first)]
        child = subprocess.Popen([*command, "--seconds", str(given.seconds), "--inside", place.name])
        at, since, code = given.first, monotonic(), None
        while code is None:
            try:
                code = child.wait(timeout=1)
            except subprocess.TimeoutExpired:
                code = None
            place.seek(0)
            number = int.from_bytes(place.read(8), "little")
            if number != at:
                at, since = number, monotonic()
            elif monotonic() - since > STUCK and code is None:
                child.kill()
                print(f"case {at} does not end", flush=True)
        if code == 0:
            print(f"seed {given.seed}: cases {given.first} to {at} are fine")
            return 0
        print(
            f"case {at} ended the process with code {code}. Again: python -m tests.fuzz --seed {given.seed} --only {at}"
        )
        return 1


def _inside(given: argparse.Namespace) -> int:
    faulthandler.enable()
    end, number = monotonic() + given.seconds, given.first
    with open(given.inside, "r+b") as file, mmap.mmap(file.fileno(), 8) as place:
        while monotonic() < end:
            place[:] = number.to_bytes(8, "little")
            run(given.seed, number)
            number += 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
