#!/usr/bin/env bash
# The whole story in about five minutes, the first installation included: bash launch/quickstart.sh
#
# Makes or reuses .venv, installs compcomm, and trains one small transformer five times with two workers over a link of
# 100 Mbit/s, each time with another reducer for the same time. Leaves a table, which says of each row whether compute,
# kernels or the wire bounds its steps, runs/quickstart/quickstart.png and runs/quickstart/quickstart.json. Arguments go
# to benchmarks/train.py: --seconds 10 makes it shorter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh bench
mkdir -p runs/quickstart
export OMP_NUM_THREADS=1
job=(
    benchmarks/train.py --task charlm --seconds 30
    --reducer "Exact()"
    --reducer "Cast(bfloat16)"
    --reducer "ErrorFeedback(QSGD(bits=4, rounding='nearest'))"
    --reducer "ErrorFeedback(SignScale())"
    --reducer "ErrorFeedback(TopK(ratio=0.01))"
    --json runs/quickstart/quickstart.json --plot runs/quickstart/quickstart.png
)
if why=$(.venv/bin/python launch/netlab --check 2>&1); then
    exec .venv/bin/python launch/netlab --hosts 2 --rate 100mbit --rank0-raw -- .venv/bin/python "${job[@]}" "$@"
fi
echo "quickstart: no shaped links here, so this runs on loopback and adds what the cost model predicts for 100 Mbit/s ($why)"
exec .venv/bin/python -m torch.distributed.run --standalone --nproc-per-node 2 "${job[@]}" --link 100mbit "$@"
