#!/usr/bin/env bash
# Measures everything that the README quotes, one after the other, on a machine that does nothing else (about 15 minutes):
#   bash launch/setup.sh bench && bash benchmarks/results.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export OMP_NUM_THREADS=1
python=.venv/bin/python results=benchmarks/results
mkdir -p "$results"

$python benchmarks/kernels.py --json $results/kernels.json
$python -m torch.distributed.run --standalone --nproc-per-node 2 benchmarks/overhead.py --json $results/overhead.json
exchange() { # hosts, rate, name, arguments
    launch/netlab --hosts "$1" --rate "$2" --rank0-raw -- $python benchmarks/exchange.py --model resnet50 \
        --json "$results/exchange-$3.json" "${@:4}"
}
exchange 2 1gbit 2-hosts-1gbit
exchange 2 100mbit 2-hosts-100mbit --repeats 5
exchange 4 1gbit 4-hosts-1gbit --repeats 9
bash launch/quickstart.sh
cp runs/quickstart/quickstart.json runs/quickstart/quickstart.png $results/
$python benchmarks/readme.py
