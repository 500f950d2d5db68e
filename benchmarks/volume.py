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
STEPS = 3  # of which the last is counted: by then thresholds are known from the steps before
REDUCERS = ("SparseAllReduce({})", "AllGather({})", "TwoPhase({})")
Row = dict[str, Any]


def rows(quick: bool = False) -> list[Row]:
    """Per number of workers and reducer: "elements" (bytes sent / 4, per rank, the largest) in multiples of k, "goal",
    the "energy" of what is selected against that of the k largest elements of the mean, and the mean's relative error.

    Rank r of W workers has the recorded batch r of each step.
    """
    texts = [text.format(f"TopK(ratio={RATIO}, dense_below=0)") for text in REDUCERS]
    texts = [text for text in texts if hasattr(cc, text.partition("(")[0])]
    worlds = WORLDS[:2] if quick else WORLDS
    runs = {(world, text): cc.Simulator(cc.parse(text), world) for world in worlds for text in texts}
    found: list[Row] = []
    for step, gradients in enumerate(record.ranks(worlds[-1], STEPS, quick)):
        buckets = [flatten(g) for g in gradients]
        for (world, text), simulator in runs.items():
            before = list(simulator.sent)
            (mean, *_), *_ = simulator.step([[b] for b in buckets[:world]])
            if step == STEPS - 1:
                sent = max(now - then for now, then in zip(simulator.sent, before, strict=True))
                exact = torch.stack([b.flat for b in buckets[:world]]).mean(0)
                found.append({"world_size": world, "reducer": text, **compared(mean, exact, sent)})
    return found


def compared(mean: cc.Bucket, exact: Tensor, sent: int) -> Row:
    """Traffic and quality of a sparse mean."""
    top = cc.TopK(ratio=RATIO, dense_below=0)
    kept = sum(top.kept(s.numel) for s in mean.layout.segments)
    best = torch.zeros((), dtype=torch.float64)
    for s in mean.layout.segments:
        part = exact[s.start : s.stop].double().square()
        best += part.topk(top.kept(s.numel)).values.sum()
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
