"""Hints speed a call up and change no result: top-k keeps the last threshold of every parameter."""

from __future__ import annotations

import pytest
import torch

import compcomm as cc


@pytest.mark.parametrize("wrong", [0.0, 1e-30, 1e30, -1.0, float("nan"), float("inf")])
def test_a_threshold_is_kept_and_never_trusted(wrong: float) -> None:
    g = torch.Generator().manual_seed(0)
    told, asked = (cc.Simulator(cc.ErrorFeedback(cc.TopK(k=40, dense_below=1)), 2) for _ in range(2))
    for _ in range(4):
        given = [{"v": torch.randn(50, 40, generator=g), "w": 9 * torch.randn(70, 30, generator=g)} for _ in range(2)]
        before = {n: t.clone() for n, t in told.stores[0].state_dict().get("residual", {}).items()}
        a, b = told.mean(given), asked.mean(given)
        for n in ("v", "w"):
            assert torch.equal(a[0][n], b[0][n])
            y = given[0][n].view(-1) + before.get(n, torch.zeros(given[0][n].numel()))
            assert float(told.stores[0].state_dict()["threshold"][n]) == float(y.abs().sort().values[-40])
        for store in told.stores:
            store.load_state_dict({s: {n: torch.full_like(t, wrong) if s == "threshold" else t for n, t in e.items()}
                                   for s, e in store.state_dict().items()})  # fmt: skip
