"""The two-phase mean with a residual at either end: what was not applied is still there, over hundreds of steps."""

from __future__ import annotations

import torch

import compcomm as cc
from compcomm.testing.conservation import remembered


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
