#!/usr/bin/env bash
# Makes or reuses .venv, installs the test extras, runs the tests: bash launch/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh test
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # many tests start several processes: one thread each
exec .venv/bin/python -m pytest "$@"
