"""What sparse averages send as workers are added: counted in the simulator, on a transformer's gradients."""

from __future__ import annotations

from typing import Any

import record
import torch
from errors import flatten
from torch import Tensor

import compcomm as cc

WORLDS = (2, 4, 8, 16, 32, 64)
RATIO = 0.01
TOPK = cc.TopK(ratio=RATIO)
REDUCERS = (f"SparseAllReduce({TOPK})", f"AllGather({TOPK})", f"TwoPhase({TOPK})")
Row = dict[str, Any]


def rows(quick: bool = False) -> list[Row]:
    """Per number of workers and reducer: "elements" (bytes / 4, of the rank that sends most) in multiples of k, the
    "energy" of what is selected against that of the k largest elements of the mean, and the mean's relative error.

    Every worker has a batch of its own; parameters that would travel exact are left out.
    """
    worlds = WORLDS[:2] if quick else WORLDS
    named = record.ranks(worlds[-1], quick)
    gradients = [flatten({name: t for name, t in g.items() if t.dim() > 1}) for g in named]
    found: list[Row] = []
    for world in worlds:
        for text in REDUCERS:
            simulator = cc.Simulator(cc.parse(text), world)
            (mean, *_), *_ = simulator.step([[g] for g in gradients[:world]])
            exact = torch.stack([g.flat for g in gradients[:world]]).mean(0)
            row = {"world_size": world, "reducer": repr(simulator.reducer)}
            found.append(row | compared(mean, exact, max(simulator.sent)))
    return found


def compared(mean: cc.Bucket, exact: Tensor, sent: int) -> Row:
    """Traffic and quality of a sparse mean."""
    kept = sum(TOPK.kept(s.numel) for s in mean.layout.segments)
    best = torch.zeros((), dtype=torch.float64)
    for s in mean.layout.segments:
        part = exact[s.start : s.stop].double().square()
        best += part.topk(TOPK.kept(s.numel)).values.sum()
    selected = exact[mean.flat != 0].double().square().sum()
    error = (exact - mean.flat).double().square().sum() / exact.double().square().sum()
    return {
        "k": kept,
        "bytes_sent": sent,
        "elements": sent / 4 / kept,
        "selected": int((mean.flat != 0).sum()) / kept,
        "energy": float(selected / best),
        "relative_error": float(error),
    }
