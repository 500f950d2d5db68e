#!/usr/bin/env bash
# A worker is killed, and the run ends as if nothing had happened; four workers become two, and nothing is lost
# (a minute or two): bash launch/elastic.sh
#
# 1. Two workers train digits under ErrorFeedback(TopK(ratio=0.01)), undisturbed.
# 2. The same; in step 117 one worker dies by SIGKILL. torchrun starts both again, they resume from their own
#    checkpoints, and loss and parameters come out with the same bits.
# 3. Four workers train half of it and save one portable checkpoint; two go on from there.
# Leaves runs/elastic. Arguments go to every run of launch/elastic.py: --steps 400 makes it longer.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh bench
folder=runs/elastic
rm -rf "$folder"
export OMP_NUM_THREADS=1
# Without this the workers of all lives share torchrun's store, and may meet the addresses of dead ones in it: "Gloo
# connectFullMesh failed ... Connection refused" (pytorch issue 135712).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
train() { # workers, name, arguments
    .venv/bin/python -m torch.distributed.run --standalone --nproc-per-node "$1" --max-restarts 3 \
        launch/elastic.py --folder "$folder/$2" "${@:3}"
}
echo "elastic: 1. undisturbed"
train 2 unbroken "$@"
echo "elastic: 2. one of two workers dies in step 117 (what torchrun then logs is meant to be there)"
train 2 killed --kill 117 "$@"
echo "elastic: 3. four workers, then two"
train 4 workers --portable "$@" --steps 100
train 2 workers --portable "$@"
exec .venv/bin/python - "$folder" <<'END'
import json, sys
from pathlib import Path

folder, names = Path(sys.argv[1]), ("unbroken", "killed", "workers")
ends = {name: json.loads((folder / name / "end.json").read_text()) for name in names}
for name, end in ends.items():
    print(f"elastic: {name:9} loss {end['loss']:.12f}  parameters {end['parameters']}  lives {end['lives']}")
same = all(ends["unbroken"][key] == ends["killed"][key] for key in ("loss", "parameters", "pending"))
print("elastic: killed and unbroken end with " + ("the same bits" if same else "DIFFERENT BITS"))
if ends["killed"]["lives"] < 2:
    print("elastic: nobody was killed: the run ended before step 117")
sys.exit(not (same and ends["killed"]["lives"] > 1))
END
