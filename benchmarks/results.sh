#!/usr/bin/env bash
# Measures everything that the pages quote, one after the other, on a machine that does nothing else (two hours):
#   bash benchmarks/results.sh
# May be run again: each step overwrites its file in benchmarks/results, and only when it has come to its end. The first
# step that fails ends the script, with the step's name.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=.venv/bin/python results=benchmarks/results runs=runs/results
export OMP_NUM_THREADS=1
mkdir -p "$results" "$runs"
step="set-up"
trap 'code=$?; [ $code = 0 ] || printf "results: %s failed with exit code %s\n" "$step" $code >&2' EXIT
bash launch/setup.sh bench

measure() { # name, program and arguments; --json and the file come last
    step=$1
    printf 'results: %s\n' "$step" >&2
    rm -f "$runs/$step.json"
    "${@:2}" --json "$runs/$step.json"
    mv "$runs/$step.json" "$results/$step.json"
}
exchange() { # hosts, rate, more arguments
    measure "exchange-$1-hosts-$2" $python launch/netlab --hosts "$1" --rate "$2" --rank0-raw -- \
        $python benchmarks/exchange.py --model resnet50 "${@:3}"
}
optimizers() { # name, hosts, rate, arguments
    measure "optimizers-$1" $python launch/netlab --hosts "$2" --rate "$3" --rank0-raw -- \
        $python benchmarks/optimizers.py "${@:4}"
}
step="netlab --check" # without shaped links the figures would mean nothing
$python launch/netlab --check

measure kernels $python benchmarks/kernels.py
if $python -c "import torch; raise SystemExit(not torch.cuda.is_available())"; then
    measure kernels-cuda $python benchmarks/kernels.py --device cuda
else
    echo "results: no GPU here that torch can use: kernels-cuda stays as it is" >&2
fi
measure compressors $python benchmarks/compressors.py --plot "$runs/compressors.png"
cp "$runs/compressors.png" "$results/"
measure overhead $python -m torch.distributed.run --standalone --nproc-per-node 2 benchmarks/overhead.py \
    --reducer "ErrorFeedback(QSGD(bits=4, rounding='nearest'))"
measure memory $python -m torch.distributed.run --standalone --nproc-per-node 4 benchmarks/memory.py
measure thrown-away $python benchmarks/thrown_away.py
names=(three_workers weights econtrol lyapunov)
if [ -n "${LIBSVM:-}" ]; then names+=(logistic); else
    echo "results: LIBSVM= names no folder with phishing, mushrooms, a9a and w8a: convergence-logistic stays as it is" >&2
fi
measure convergence-digits $python benchmarks/convergence/digits.py --plot "$results/convergence-digits.png"
measure convergence-charlm $python launch/netlab --hosts 2 --rate 1gbit --rank0-raw -- \
    $python benchmarks/convergence/charlm.py --plot "$results/convergence-charlm.png"
for name in "${names[@]}"; do
    more=() file=convergence-${name//_/-}
    [ $name != logistic ] || more=(--data "$LIBSVM")
    measure "$file" $python "benchmarks/convergence/$name.py" "${more[@]}" --plot "$results/$file.png"
done
exchange 2 1gbit
exchange 2 100mbit --repeats 5
exchange 4 1gbit --repeats 9
measure sharded-links $python launch/netlab --hosts 2 --ranks-per-host 2 --rate 100mbit --rank0-raw -- \
    $python benchmarks/sharded.py links
sharded=($python -m torch.distributed.run --standalone --nproc-per-node 4 benchmarks/sharded.py)
measure sharded-loopback "${sharded[@]}" loopback --steps 30
measure sharded-losses "${sharded[@]}" losses
for name in gains rivals phases allocation; do
    more=()
    [ $name != gains ] || more=(--plot "$results/adaptive-gains.png")
    measure "adaptive-$name" $python benchmarks/adaptive.py $name "${more[@]}"
done
measure adaptive-train-digits $python benchmarks/adaptive.py train --task digits --world 4 \
    --plot "$results/adaptive-train-digits.png"
measure adaptive-train-charlm $python benchmarks/adaptive.py train --task charlm \
    --plot "$results/adaptive-train-charlm.png"
measure plan-resnet50 $python -m compcomm plan --model resnet50 --workers 64 --bandwidth 1gbit --latency 50us \
    --compute 0.2 --png "$results/plan-resnet50.png"
adaptive() { # experiment, model, steps
    measure "adaptive-$1-$2" $python -m torch.distributed.run --standalone --nproc-per-node 2 \
        benchmarks/adaptive.py "$1" --model "$2" --steps "$3"
}
for hosts in 2 4; do
    for rate in 100mbit 300mbit 1gbit; do
        measure "planner-$hosts-hosts-$rate" $python launch/netlab --hosts $hosts --rate $rate --rank0-raw -- \
            $python benchmarks/planner.py
    done
done
adaptive cost charlm 2000
adaptive cost resnet50 400
adaptive auto charlm 400
adaptive auto resnet50 100
optimizers convergence-digits 4 1gbit convergence --task digits --steps 640 --local-steps 8 \
    --plot "$results/optimizers-convergence-digits.png"
optimizers convergence-charlm 4 1gbit convergence --task charlm --steps 320 --local-steps 8 \
    --plot "$results/optimizers-convergence-charlm.png"
for hosts in 2 4; do
    most=("no exchange" "fp16, Adam" "1-bit Adam")
    [ $hosts = 4 ] || most+=("0/1 Adam") # four of them with GPT-2's shapes take more than 24 GB
    optimizers "throughput-resnet50-$hosts-hosts-1gbit" $hosts 1gbit throughput --model resnet50
    optimizers "throughput-resnet50-$hosts-hosts-100mbit" $hosts 100mbit throughput --model resnet50 --settle 1 --repeats 3
    optimizers "throughput-gpt2-$hosts-hosts-1gbit" $hosts 1gbit throughput --model gpt2 --settle 1 --repeats 3 \
        --contestant "${most[@]}" "bf16, Adam" "fp32, Adam"
    optimizers "throughput-gpt2-$hosts-hosts-100mbit" $hosts 100mbit throughput --model gpt2 --settle 1 --repeats 2 \
        --contestant "${most[@]}" # others take half a minute a step, and more
done
measure optimizers-arithmetic $python benchmarks/optimizers.py arithmetic
measure optimizers-model $python benchmarks/optimizers.py model
step=optimizers-plot
$python benchmarks/optimizers.py plot --results "$results" --plot "$results/optimizers-throughput.png"
measure set-up $python benchmarks/set_up.py --tests
step=quickstart
bash launch/quickstart.sh --seconds 40
cp runs/quickstart/quickstart.json runs/quickstart/quickstart.png "$results/"
step=results-page
$python benchmarks/results_page.py
