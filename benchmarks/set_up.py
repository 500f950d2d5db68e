"""How long a newcomer waits: from a fresh clone to an installed package, and to the quickstart's table.

    python benchmarks/set_up.py --json benchmarks/results/set-up.json

Clones the last commit into a temporary folder, without caches of its own (pip's may be warm), and runs the two scripts
there. Nothing else should compute meanwhile. ``--tests`` times the build that the tests need as well.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
from pathlib import Path
from time import perf_counter

from common import ROOT, write


def seconds(folder: Path, *command: str) -> float:
    """Wall time of a script in a clone; it must succeed."""
    surroundings = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "CC_", "COMPCOMM_", "GLOO_"))}
    since = perf_counter()
    subprocess.run(["bash", *command], cwd=folder, env=surroundings, check=True)
    return perf_counter() - since


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as scratch:
        clone = Path(scratch) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        rows = [{"what": "install", "seconds": seconds(clone, "launch/setup.sh", "bench")}]
        rows.append({"what": "quickstart, installed", "seconds": seconds(clone, "launch/quickstart.sh")})
        if options.tests:
            rows.append({"what": "install for tests", "seconds": seconds(clone, "launch/setup.sh", "test")})
    for row in rows:
        print(f"{row['what']:24} {row['seconds']:7.1f} s")
    if options.json:
        write(options.json, "set-up", rows)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--tests", action="store_true", help="time the build for tests, too")
    parser.add_argument("--json", help="file for the rows")
    return parser.parse_args()


if __name__ == "__main__":
    main()
