"""What a bucket's way through the package costs in Python: calls and tensors made, counted and not timed.

    python benchmarks/calls.py --json benchmarks/results/calls.json [--baseline-json before.json]

Two processes, Gloo, DDP with one linear layer per bucket (a weight that is coded and a bias that travels exact). Calls
are those of functions of the package, a generator's resumption among them, in all threads of rank 0; half of the steps
have MORE buckets than the other half, so that what a bucket costs and what a step costs beside come out apart. Tensors
made are torch's allocations (aten::empty and its kin) in the same steps, less those that DDP makes without a hook.

Counts do not depend on the machine. ``--baseline-json`` lays those of another version, written by this script with that
version's interpreter, beside these.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # before torch

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from common import commit, write
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import compcomm as cc

PACKAGE = Path(cc.__file__).resolve().parent
REDUCERS = (
    "Exact()",
    "ErrorFeedback(TopK(ratio=0.01))",
    "ErrorFeedback(TwoPhase(TopK(ratio=0.01)))",
    "ErrorFeedback(QSGD(bits=4))",
    "ErrorFeedback(SignScale())",
    "DGC(TopK(ratio=0.01))",
    "PowerSGD(rank=4)",
    "AllReduce(RandK(ratio=0.01))",
    "SharedScale(QSGD(bits=4))",
    "EF21(TopK(ratio=0.01))",
    "Partition({'*weight': ErrorFeedback(TopK(ratio=0.01)), '*': Exact()})",
)
FEW, MORE, SIDE, STEPS = 2, 6, 384, 4
EMPTY = ("aten::empty", "aten::empty_strided")
"""What all other makers of tensors call in the end."""


class Model(nn.Module):
    """So many linear layers of more than half a MiB, each a bucket of its own."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(SIDE, SIDE) for _ in range(layers)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x).square().mean()


class Calls:
    """Counts calls by file, while it is ``on``, in every thread that was started since ``install``."""

    def __init__(self) -> None:
        self.on = False
        self.found: Counter[str] = Counter()
        self._files: dict[str, str | None] = {}

    def install(self) -> None:
        threading.setprofile(self)
        sys.setprofile(self)

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if not self.on or event != "call":
            return
        path = frame.f_code.co_filename
        if path not in self._files:
            inside = PACKAGE in Path(path).parents
            self._files[path] = str(Path(path).relative_to(PACKAGE)) if inside else None
        if (name := self._files[path]) is not None:
            self.found[name] += 1


def steps(text: str | None, layers: int, calls: Calls) -> tuple[Counter[str], float, int]:
    """Calls by file and tensors made in STEPS steps, each by step, and how many buckets there were."""
    torch.manual_seed(0)
    model = DistributedDataParallel(Model(layers), bucket_cap_mb=0.5, gradient_as_bucket_view=True)
    attached: Any = None
    if text is not None:
        plain = torch.optim.SGD(model.parameters(), 0.1)  # DGC brings a momentum of its own
        attached = cc.attach(model, cc.parse(text), optimizer=plain)
    x = torch.randn(8, SIDE)

    def run(count: int) -> None:
        for _ in range(count):
            model(x).backward()
            dist.barrier()  # so that threads are done

    run(4)  # buckets are rebuilt after the first
    calls.found.clear()
    calls.on = True
    run(STEPS)
    calls.on = False
    config = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)  # pyright: ignore
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], experimental_config=config) as seen:
        run(STEPS)
    made = sum(e.count for e in seen.key_averages() if e.key in EMPTY)
    if attached is not None:
        attached.detach()
    return Counter({name: n for name, n in calls.found.items()}), made / STEPS, layers


def rank(number: int, store: str, texts: tuple[str, ...], out: str) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=2)
    calls = Calls()
    calls.install()
    rows: list[dict[str, Any]] = []
    plain = {layers: steps(None, layers, calls)[1] for layers in (FEW, MORE)}
    for text in texts:
        few, more = (steps(text, layers, calls) for layers in (FEW, MORE))
        by_file = {f: (more[0][f] - few[0][f]) / STEPS / (MORE - FEW) for f in sorted(more[0])}
        total = sum(by_file.values())
        once = sum(few[0].values()) / STEPS - FEW * total
        tensors = ((more[1] - plain[MORE]) - (few[1] - plain[FEW])) / (MORE - FEW)
        rows.append(
            {
                "reducer": text,
                "calls_per_bucket": total,
                "calls_per_step": once,
                "tensors_per_bucket": tensors,
                "tensors_per_step": few[1] - plain[FEW] - FEW * tensors,
                "by_file": {f: n for f, n in sorted(by_file.items(), key=lambda item: -item[1]) if n},
            }
        )
    if number == 0:
        Path(out).write_text(json.dumps(rows))
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--reducer", nargs="+", action="extend", help="these in place of the usual ones")
    parser.add_argument("--json", help="file for the counts")
    parser.add_argument("--baseline-json", help="counts of another version, to lay beside")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/rows.json"
        mp.spawn(rank, (f"{folder}/store", tuple(options.reducer or REDUCERS), out), 2)  # pyright: ignore
        rows: list[dict[str, Any]] = json.loads(Path(out).read_text())
    before: dict[str, Any] = {}
    if options.baseline_json:
        found = json.loads(Path(options.baseline_json).read_text())
        before = {row["reducer"]: row for row in found["rows"]}
    for row in rows:
        old = row["before"] = before.get(row["reducer"])
        line = f"{row['reducer']:44} {row['calls_per_bucket']:7.1f} calls, {row['tensors_per_bucket']:5.1f} tensors"
        print(line + (f"   (before {old['calls_per_bucket']:.1f}, {old['tensors_per_bucket']:.1f})" if old else ""))
    if options.json:
        write(options.json, "calls", rows, package=commit(PACKAGE.parent))


if __name__ == "__main__":
    main()
