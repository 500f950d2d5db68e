#!/usr/bin/env bash
# Makes or reuses .venv, installs the test extras, runs the tests: bash launch/test.sh [pytest arguments]
#   --quick    for daily work: nothing slow, no processes, no descents, no interpreted kernels
#   --full     every case, every GPU kernel compiled, the long benchmarks, and what times something
# What lies where, and how a test stays short: tests/README.md.
# Two workers run side by side, of which one takes all tests that start processes (-n 0: none).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh test
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # many tests start several processes: one thread each
unset PYTHONDONTWRITEBYTECODE # dozens of processes import the package: it is compiled once
exec .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
