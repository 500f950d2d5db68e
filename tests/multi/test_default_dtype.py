"""Under another default dtype a hook gives the same bits, and everything that may be asked of it is answered."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import compcomm as cc

from . import models
from .harness import Workers

pytestmark = pytest.mark.multi

REDUCERS = (
    "LGreCo(ErrorFeedback(TopK(ratio=0.05)), every=2)",
    "PowerSGD(2)",
    "Warmup(1, ErrorFeedback(TwoPhase(QSGD(bits=4, rounding='nearest'))))",
)


def life(rank: int, reducer: str, dtype: torch.dtype) -> Any:
    module, xs = models.mlp(), models.batches(rank, 5)
    torch.set_default_dtype(dtype)
    try:
        model, hook = models.wrap(module, cc.parse(reducer), check_every=2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for x in xs:
            optimizer.zero_grad()
            model(x).pow(2).mean().backward()
            optimizer.step()
        report, exact, merged = hook.report(), hook.state_dict(), hook.portable_state_dict()
        asked = report.relative_error, report.bytes_sent, hook.choices(), str(report) != "", len(hook.telemetry())
        hook.load_state_dict(exact)
        hook.load_portable_state_dict(merged)
        kept = {f"{s} {n}": t for slots in (models.own(exact)["slots"], merged["slots"]) for s, e in slots.items()
                for n, t in e.items()}  # fmt: skip
        hook.detach()
    finally:
        torch.set_default_dtype(torch.float32)
    return models.flat(model), asked, kept


def lives(rank: int, world: int, dtype: torch.dtype) -> Any:
    return [(life(rank, r, torch.float32), life(rank, r, dtype)) for r in REDUCERS]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_hook_under_another_default_dtype(two: Workers, dtype: torch.dtype) -> None:
    for rank in two.run(lives, dtype=dtype):
        for (reached, asked, kept), (again, asked_again, kept_again) in rank:
            assert torch.equal(reached, again)
            assert asked == asked_again
            assert kept.keys() == kept_again.keys()
            assert all(t.dtype == kept_again[n].dtype and torch.equal(t, kept_again[n]) for n, t in kept.items())
