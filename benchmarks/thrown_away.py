"""What later steps bring of one batch that the script skipped or clipped: by scheme, in the simulator.

    python benchmarks/thrown_away.py --json runs/thrown_away.json

Two workers, one matrix of 64 x 96, the same gradients in every step, but that in step 10 they are of another direction
and 1000 times as long. ``skipped``: the script sees that and zeroes the gradients; the figure is what steps 11 to 210
move along the bad gradient, as a share of it. Without a hook it is 0; 1 says that all of it came, later. ``clipped``:
every mean is clipped to norm 1 after the hook, as ``clip_grad_norm_`` does; the figure is in how many steps' lengths
the model moves along the bad gradient in all. Without a hook it is 1.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from common import write
from torch import Tensor

import compcomm as cc

WORLD, SHAPE, STEPS, BAD, FACTOR = 2, (64, 96), 211, 10, 1000.0
TOP = cc.TopK(ratio=0.01)
REDUCERS: tuple[cc.Reducer, ...] = (
    cc.Exact(),
    cc.ErrorFeedback(cc.QSGD(bits=4, rounding="nearest")),
    cc.ErrorFeedback(cc.SignScale()),
    cc.ErrorFeedback(TOP),
    cc.EF21(TOP),
    cc.EControl(TOP),
    cc.DGC(TOP),
    cc.PowerSGD(2),
)


def moved(reducer: cc.Reducer, way: str, bad: bool) -> Tensor:
    """The sum of what the optimizer gets; where the bad gradient is skipped, without that step's own."""
    g = torch.Generator().manual_seed(1)
    usual, spike = torch.randn(2, WORLD, *SHAPE, generator=g)
    simulator = cc.Simulator(reducer, WORLD)
    total = torch.zeros(SHAPE, dtype=torch.float64)
    for step in range(STEPS):
        hit = bad and step == BAD
        mean = simulator.mean([{"w": FACTOR * spike[r] if hit else usual[r]} for r in range(WORLD)])[0]["w"].double()
        if way == "clipped":
            mean = mean / max(1.0, float(mean.norm()))
        if way == "clipped" or not hit:
            total += mean
    return total


def measure(reducer: cc.Reducer) -> dict[str, Any]:
    """One row: both ways."""
    g = torch.Generator().manual_seed(1)
    direction = torch.randn(2, WORLD, *SHAPE, generator=g)[1].double().mean(0)
    row: dict[str, Any] = {"reducer": repr(reducer)}
    for way, unit in (("skipped", FACTOR * float(direction.norm())), ("clipped", 1.0)):
        more = moved(reducer, way, True) - moved(reducer, way, False)
        row[way] = float((more * direction).sum() / direction.norm()) / unit
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--json", help="file for the result")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(reducer) for reducer in REDUCERS]
    for row in rows:
        print(f"{row['reducer']:60} skipped {row['skipped']:7.3f}   clipped {row['clipped']:7.2f}")
    if options.json:
        write(options.json, "thrown_away", rows, world_size=WORLD, factor=FACTOR, steps=STEPS)


if __name__ == "__main__":
    main()
