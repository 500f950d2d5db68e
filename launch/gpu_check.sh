#!/usr/bin/env bash
# All that needs a GPU, in under 12 minutes: bash launch/gpu_check.sh FOLDER
#
# Takes a machine with a driver and a Python: makes or reuses .venv (with the torch that is installed here, where that
# one sees the GPU; else what the package registry gives), runs the tests of tests/gpu, and measures the kernels. Leaves
# in FOLDER: device.json, tests.json (what passed, failed, was skipped and why), kernels.json (rows of measurements), a
# log for each part, and summary.json. A part that takes too long is ended, and the next one begins.
# Exit code: 0 where all went well, or there is no GPU, which is said; 1 where a part failed.
set -uo pipefail
folder=$(mkdir -p "${1:?usage: bash launch/gpu_check.sh FOLDER}" && cd "$1" && pwd) || exit 1
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf 'gpu_check: %s\n' "$*"; }

if ! command -v nvidia-smi >/dev/null; then
    say "skipped: no GPU here, or no driver for it (there is no nvidia-smi); nothing was run"
    exit 0
fi
if ! gpus=$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>&1) || [ -z "$gpus" ]; then
    say "skipped: no GPU here that a driver knows of (nvidia-smi: ${gpus:-nothing listed}); nothing was run"
    exit 0
fi
say "$(head -n 1 <<<"$gpus")"

parts=()
worst=0
part() { # name, seconds, command ...
    local name=$1 limit=$2 since=$SECONDS code=0 note=
    shift 2
    timeout --kill-after=10 "$limit" "$@" >"$folder/$name.log" 2>&1 || code=$?
    [ "$code" = 124 ] || [ "$code" = 137 ] && note=", ended after its $limit s"
    [ "$code" = 0 ] || worst=1
    parts+=("{\"part\": \"$name\", \"seconds\": $((SECONDS - since)), \"code\": $code}")
    say "$name: $([ "$code" = 0 ] && echo fine || echo "FAILED with code $code") in $((SECONDS - since)) s$note"
    [ "$code" = 0 ] || tail -n 5 "$folder/$name.log"
    return "$code"
}
finish() {
    local IFS=,
    printf '[%s]\n' "${parts[*]}" >"$folder/summary.json"
    exit "$worst"
}

sees='import sys, torch; sys.exit(not torch.cuda.is_available())'
if [ ! -e .venv ]; then
    for python in ${PYTHON:+"$PYTHON"} python3 python; do
        if "$python" -c "$sees" >/dev/null 2>&1; then
            say "using the torch of $(command -v "$python")"
            "$python" -m venv --system-site-packages .venv
            export COMPCOMM_CONSTRAINTS=/dev/null
            break
        fi
    done
fi
part setup 240 bash launch/setup.sh test || finish
part device 60 .venv/bin/python -c "
import json, sys, torch
found = {'torch': torch.__version__, 'cuda': torch.version.cuda, 'nvidia-smi': '''$gpus'''.splitlines()}
if torch.cuda.is_available():
    p = torch.cuda.get_device_properties(0)
    found |= {'name': p.name, 'capability': [p.major, p.minor], 'memory_bytes': p.total_memory}
json.dump(found, open('$folder/device.json', 'w'), indent=1)
if 'name' not in found:
    sys.exit(f'torch {torch.__version__}, built for CUDA {torch.version.cuda}, does not see the GPU. Cure: install a '
             'torch for CUDA that fits the driver, then rm -r .venv, or install it into .venv.')
" || finish

export OMP_NUM_THREADS=1
part tests 230 .venv/bin/python -m pytest tests/gpu -q --junitxml="$folder/tests.xml"
part collect 10 .venv/bin/python -c "
import json, xml.etree.ElementTree as xml
found = {'passed': [], 'failed': {}, 'skipped': {}}
for case in xml.parse('$folder/tests.xml').iter('testcase'):
    name = case.get('classname') + '::' + case.get('name')
    for kind in ('failure', 'error', 'skipped'):
        if (what := case.find(kind)) is not None:
            found['skipped' if kind == 'skipped' else 'failed'][name] = what.get('message')
            break
    else:
        found['passed'].append(name)
json.dump(found, open('$folder/tests.json', 'w'), indent=1)
print({kind: len(names) for kind, names in found.items()})
for name, why in found['skipped'].items():
    print('skipped:', name, '-', why)
"
[ ! -e "$folder/collect.log" ] || cat "$folder/collect.log"
part kernels 170 .venv/bin/python benchmarks/kernels.py --device cuda --budget 1 --json "$folder/kernels.json"
grep skipped: "$folder/kernels.log" || true
finish
