"""Why the variance has a floor: handwritten digits, whose dark corners never have a gradient. (In small:
``tests/optim/test_contract.py``'s dead elements.)"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel as DDP

import compcomm as cc

from .harness import Workers

pytestmark = [pytest.mark.multi, pytest.mark.full]

BENCHMARKS = str(Path(__file__).resolve().parents[2] / "benchmarks")
OPTIONS = {"OneBitAdam": {"lr": 1e-3, "freeze": 45}, "OneBitLamb": {"lr": 0.01, "freeze": 60}}


def digits(rank: int, world: int, kind: str, **options: Any) -> Any:
    sys.path.insert(0, BENCHMARKS)
    try:
        from tasks.digits import Digits

        task = Digits()
    finally:
        sys.path.remove(BENCHMARKS)
    module = task.model(0)
    model = DDP(module)
    own = getattr(cc.optim, kind)(model, timeout=20, **OPTIONS[kind], **options)
    for step in range(300):
        x, y = task.batch(0, step, rank)
        own.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        own.step()
    own.detach()
    with torch.no_grad():
        logits = module(task.held_out.x)
    accuracy = (logits.argmax(1) == task.held_out.y).float().mean()
    largest = max(float(p.detach().abs().max()) for p in module.parameters())
    return float(functional.cross_entropy(logits, task.held_out.y)), float(accuracy), largest


@pytest.mark.parametrize(
    ("ranks", "kind", "options"),
    [
        ("two", "OneBitAdam", {}),
        ("four", "OneBitAdam", {}),
        ("four", "OneBitAdam", {"bias_correction": True}),
        ("four", "OneBitLamb", {}),
    ],
    ids=str,
)
def test_with_the_floor_it_learns(request: Any, ranks: str, kind: str, options: dict[str, Any]) -> None:
    workers: Workers = request.getfixturevalue(ranks)
    loss, accuracy, largest = workers.run(digits, kind=kind, **options)[0]
    assert loss < 0.15 and accuracy > 0.955, (loss, accuracy)
    assert kind != "OneBitAdam" or largest < 2.0


@pytest.mark.parametrize(("ranks", "kind"), [("two", "OneBitAdam"), ("four", "OneBitAdam"), ("four", "OneBitLamb")])
def test_without_it_diverges(request: Any, ranks: str, kind: str) -> None:
    """The published formula: elements whose v is next to nothing take steps that nothing bounds."""
    workers: Workers = request.getfixturevalue(ranks)
    loss, accuracy, largest = workers.run(digits, kind=kind, v_floor=0.0)[0]
    assert not loss < 2.0 and accuracy < 0.5, (loss, accuracy)
    assert kind != "OneBitAdam" or not largest < 1e6
