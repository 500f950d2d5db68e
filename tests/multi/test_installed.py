"""A method of an installed package in training: two workers parse its name and average by it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

import compcomm as cc

from ..core.test_installed import METHOD, install
from .harness import Workers

pytestmark = pytest.mark.multi


def train(rank: int, world: int, site: str) -> tuple[str, torch.Tensor, float]:
    sys.path.insert(0, site)
    try:
        torch.manual_seed(0)
        model = DDP(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1)))
        hook = cc.attach(model, cc.parse("ErrorFeedback(Unproven(TheirTwo(k=4)))"))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        data = torch.Generator().manual_seed(rank)
        losses: list[float] = []
        for _ in range(30):
            x = torch.randn(32, 64, generator=data)
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), x.sum(1, keepdim=True) / 8)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        ratio = hook.report().ratio
        hook.detach()
        return f"{losses[-1] < 0.8 * losses[0]}", torch.cat([p.detach().view(-1) for p in model.parameters()]), ratio
    finally:
        sys.path.remove(site)


def test_two_workers_train_by_an_installed_method(two: Workers, tmp_path: Path) -> None:
    entry = "[compcomm.compressors]\nTheirTwo = their_two:TheirTwo\n"
    install(tmp_path, "their_two", METHOD.format(name="TheirTwo"), entry)
    (learnt, a, ratio), (_, b, _) = two.run(train, site=str(tmp_path))
    assert learnt == "True" and torch.equal(a, b) and ratio > 2
