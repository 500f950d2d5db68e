"""Feedback in the long run: what was not applied is still there, after bad steps too, and stays small."""

from __future__ import annotations

import pytest
import torch

import compcomm as cc
from compcomm.testing.conservation import remembered

SHAPE, STEPS = (30, 50), 100


@pytest.mark.slow
@pytest.mark.parametrize(
    ("inner", "world"),
    [
        ("TwoPhase(SignScale(block=64))", 4),
        ("TwoPhase(QSGD(bits=2, rounding='nearest', block=64))", 2),
        ("TwoPhase(TopK(ratio=0.1))", 3),
        ("TwoPhase(Cast(bfloat16))", 3),
        ("SparseAllReduce(TopK(ratio=0.1))", 1),
        ("SparseAllReduce(TopK(ratio=0.1))", 5),
        ("Unproven(SignScale(scale='l2'))", 4),
        ("Unproven(Cast(float16))", 2),
    ],
)
def test_nothing_is_lost(inner: str, world: int) -> None:
    """sum of outs + mean residual + owners' residuals = sum of mean inputs."""
    simulator = cc.Simulator(cc.ErrorFeedback(cc.parse(inner)), world)
    g = torch.Generator().manual_seed(1)
    applied, due = torch.zeros(SHAPE, dtype=torch.float64), torch.zeros(SHAPE, dtype=torch.float64)
    drift = torch.randn(SHAPE, generator=g)
    for t in range(STEPS):
        xs = [drift + torch.randn(SHAPE, generator=g) for _ in range(world)]
        if t % 30 == 29:
            xs[-1][3, 3] = torch.inf
        outs = simulator.mean([{"w": x} for x in xs])
        assert simulator.bad == (t % 30 == 29)
        if not simulator.bad:
            assert all(torch.equal(out["w"], outs[0]["w"]) for out in outs)
            applied += outs[0]["w"]
        due += torch.stack([torch.where(x.isfinite(), x, 0.0) for x in xs]).double().mean(0)
    assert inner.startswith("Unproven") or "server" in simulator.stores[0].state_dict()
    assert torch.allclose(applied + remembered(simulator, "w", SHAPE), due, rtol=0, atol=2e-4)
    assert float((applied - due).norm() / due.norm()) < 0.25
