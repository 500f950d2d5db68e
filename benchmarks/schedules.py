"""What a new stage of a schedule costs: the first step of a stage, above the later ones of that stage.

    python benchmarks/schedules.py [--stages 8] [--json FILE]

One rank in this process, ResNet-50's shapes in the buckets of DistributedDataParallel. ``now`` is what a step within a
stage asks per bucket, which setting it has; ``new`` are tables and buffers of another size, once per stage.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import torch

import compcomm as cc
from compcomm.plan.buckets import cut
from compcomm.plan.models import find

STEPS = 4
SCHEDULES: tuple[Callable[[int], Any], ...] = (
    lambda n: cc.Geometric(cc.ErrorFeedback(cc.TopK(ratio=0.001)), start=0.25, steps=STEPS * n, stages=n),
    lambda n: cc.Geometric(cc.ErrorFeedback(cc.RandK(ratio=0.001)), start=0.25, steps=STEPS * n, stages=n),
    lambda n: cc.Linear(cc.ErrorFeedback(cc.QSGD(bits=2, rounding="nearest")), start=8, steps=STEPS * 6, stages=6),
    lambda n: cc.Linear(cc.PowerSGD(1), start=1 + n, steps=STEPS * n, stages=n),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", type=int, default=8)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    layouts = cut(find("resnet50").shapes)
    rows = [stage(make(given.stages), layouts) for make in SCHEDULES]
    print("| schedule | now, us per bucket | a step, ms | new, ms per stage |\n| --- | ---: | ---: | ---: |")
    for row in rows:
        print(f"| `{row['reducer']}` | {row['now_us']:.1f} | {row['step_ms']:.1f} | {row['new_ms']:.1f} |")
    if given.json:
        common.write(given.json, "schedules", rows)


def stage(schedule: Any, layouts: Any) -> dict[str, Any]:
    """One schedule from its first stage to its last."""
    simulator = cc.Simulator(schedule, 1)
    buckets = [cc.Bucket(torch.randn(layout.numel), layout) for layout in layouts]
    outs = [cc.Bucket(torch.empty(layout.numel), layout) for layout in layouts]
    took: dict[float, list[float]] = {}
    for step in range(schedule.steps + STEPS):
        began = time.perf_counter()
        simulator.step([buckets], [outs])
        took.setdefault(schedule.at(step), []).append(1e3 * (time.perf_counter() - began))
    stages = list(took.values())[1:]  # the first makes the memory, too
    settled: Any = simulator.reducer
    began = time.perf_counter()
    for _ in range(1000):
        settled.now_at(0)
    return {
        "reducer": repr(schedule),
        "now_us": 1e3 * (time.perf_counter() - began),
        "step_ms": statistics.median(t for times in stages for t in times[1:]),
        "new_ms": statistics.median(times[0] - statistics.median(times[1:]) for times in stages),
    }


if __name__ == "__main__":
    main()
