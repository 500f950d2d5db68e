"""The methods that are written parameter by parameter train handwritten digits under feedback: 0.94 are right
after 150 steps.

Random blocks need half of the elements: with a momentum of 0.9 a long residual is applied too late.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

import compcomm as cc

BENCHMARKS = str(Path(__file__).resolve().parents[2] / "benchmarks")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reducer", "least"),
    [
        pytest.param("ErrorFeedback(ChunkedTopK(k=128))", 10, marks=pytest.mark.full),
        ("ErrorFeedback(ChunkedTopK(k=128, dct=True))", 10),
        pytest.param("ErrorFeedback(BlockTopK(ratio=0.05, block=16))", 10, marks=pytest.mark.full),
        pytest.param("ErrorFeedback(BlockRandK(ratio=0.5, block=16))", 1.9, marks=pytest.mark.full),
    ],
)
def test_digits(reducer: str, least: float) -> None:
    sys.path.insert(0, BENCHMARKS)
    try:
        from tasks.digits import Digits

        task = Digits()
    finally:
        sys.path.remove(BENCHMARKS)
    model, described = task.model(0), cc.parse(reducer)
    named = dict(model.named_parameters())
    simulator = cc.Simulator(described, world=2)
    own = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(150):
        given: list[dict[str, torch.Tensor]] = []
        for rank in range(2):
            x, y = task.batch(0, step, rank)
            grads = torch.autograd.grad(functional.cross_entropy(model(x), y), list(named.values()))
            given.append(dict(zip(named, grads, strict=True)))
        mean = simulator.mean(given)[0]
        for name, p in named.items():
            p.grad = mean[name].clone()
        own.step()
    with torch.no_grad():
        accuracy = float((model(task.held_out.x).argmax(1) == task.held_out.y).float().mean())
    layout = cc.Layout.of([(name, p.shape) for name, p in named.items() if p.dim() > 1])
    assert accuracy > 0.94, accuracy
    assert cc.cost(described, layout, 2).ratio >= least
