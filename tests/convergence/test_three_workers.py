"""Three workers, three dimensions (Beznosikov et al. 2020): top-1 diverges without feedback, and converges with it.

f_i(x) = <a_i, x>^2 + |x|^2/4 with a_1 = (-3, 2, 2) and its rotations, from x = (1, 1, 1).
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

import compcomm as cc

A = torch.tensor([[-3.0, 2.0, 2.0], [2.0, -3.0, 2.0], [2.0, 2.0, -3.0]], dtype=torch.float64)
RATE = 5.8591e-3
TOP1 = cc.TopK(k=1, dense_below=1)


def _f(x: Tensor) -> float:
    return float(((A @ x) ** 2).mean() + x @ x / 4)


def _descend(reducer: cc.Reducer, rate: float, steps: int) -> list[Tensor]:
    simulator = cc.Simulator(reducer, 3)
    x = torch.ones(3, dtype=torch.float64)
    path = [x]
    for _ in range(steps):
        gradients = [2 * (a @ x) * a + x / 2 for a in A]
        mean = simulator.mean([{"w": g.float().view(1, 3)} for g in gradients])[0]["w"]
        x = x - rate * mean.double().view(3)
        path.append(x)
    return path


@pytest.mark.parametrize("rate", [1e-4, 5.8591e-3, 0.1])
def test_without_feedback_every_step_makes_it_worse(rate: float) -> None:
    """x grows by 1 + 11 rate/6 per step, but for fp32: each worker sends -11/2 for its own coordinate."""
    path = _descend(cc.AllGather(TOP1), rate, 60)
    due = torch.full((3,), 1 + 11 * rate / 6, dtype=torch.float64)
    for before, after in pairwise(path):
        assert torch.allclose(after / before, due, rtol=3e-7 * rate, atol=0)


def test_with_feedback_it_converges() -> None:
    """The values that fp64 arithmetic gives, which fp32 gradients meet within a few per cent."""
    path = _descend(cc.ErrorFeedback(cc.AllGather(TOP1)), RATE, 1000)
    assert _f(path[0]) == 1.75
    assert _f(path[500]) == pytest.approx(1.784e-3, rel=0.05)
    assert _f(path[1000]) == pytest.approx(1.856e-6, rel=0.05)


def test_sending_everything_converges_too() -> None:
    """Gradient descent on the mean: x shrinks by 1 - 7 rate/6 per step along (1, 1, 1)."""
    path = _descend(cc.Exact(), RATE, 100)
    due = (1 - RATE * 7 / 6) ** 100
    assert torch.allclose(path[100], torch.full((3,), due, dtype=torch.float64), rtol=1e-6)
