"""The two-phase mean with a residual at either end: what was not applied is still there, over hundreds of steps."""

from __future__ import annotations

import pytest
import torch

import compcomm as cc
from compcomm.testing.conservation import remembered


@pytest.mark.turns(2)
@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize(
    "compressor",
    [
        cc.SignScale(block=64),
        cc.QSGD(bits=2, rounding="nearest", block=64),
        cc.TopK(ratio=0.1),
        cc.Cast(torch.bfloat16),
    ],
    ids=repr,
)
def test_nothing_is_lost(compressor: cc.Compressor, world: int) -> None:
    """sum of outs + mean residual + owners' residuals = sum of mean inputs."""
    shape, steps = (30, 50), 200
    simulator = cc.Simulator(cc.ErrorFeedback(cc.TwoPhase(compressor)), world)
    assert "server=ErrorFeedback" in repr(simulator.reducer)
    g = torch.Generator().manual_seed(1)
    applied = torch.zeros(shape, dtype=torch.float64)
    due = torch.zeros(shape, dtype=torch.float64)
    drift = torch.randn(shape, generator=g)
    for _ in range(steps):
        given = [drift + torch.randn(shape, generator=g) for _ in range(world)]
        applied += simulator.mean([{"w": t} for t in given])[0]["w"]
        due += torch.stack(given).double().mean(0)
    held = remembered(simulator, "w", shape)
    assert torch.allclose(applied + held, due, rtol=0, atol=2e-4)
    assert float((applied - due).norm() / due.norm()) < 0.25, "the residuals stay small beside what was applied"


def test_without_a_server_residual_the_owners_loss_is_gone() -> None:
    """The reason for the default: with the first residual alone, what the second encoding loses is lost for good."""
    g = torch.Generator().manual_seed(1)
    given = [torch.randn(30, 50, generator=g) for _ in range(3)]
    off = {}
    for server in (cc.ErrorFeedback, False):
        simulator = cc.Simulator(cc.ErrorFeedback(cc.TwoPhase(cc.SignScale(), server=server)), 3)
        applied = sum(simulator.mean([{"w": t} for t in given])[0]["w"].double() for _ in range(50))
        due = 50 * torch.stack(given).double().mean(0)
        off[server] = float((applied + remembered(simulator, "w", (30, 50)) - due).norm() / due.norm())
    assert off[cc.ErrorFeedback] < 1e-5 < 0.1 < off[False]
