"""SparseAllReduce: the volume does not grow, the selection is nearly the best one, and nothing is lost."""

from __future__ import annotations

import pytest
import torch

import compcomm as cc

D, RATIO = 262_144, 0.01
K = 2622


def sent(reducer: cc.Reducer, world: int) -> float:
    """Elements (32-bit words) that the busiest rank sends in a step, counted by the simulator, in units of k."""
    g = torch.Generator().manual_seed(world)
    simulator = cc.Simulator(reducer, world)
    simulator.mean([{"w": torch.randn(512, 512, generator=g)} for _ in range(world)])
    return max(simulator.sent) / 4 / K


@pytest.mark.parametrize("world", [2, 4, 8, 16, 32, 64])
def test_a_rank_sends_under_6k_elements(world: int) -> None:
    """Values and indices counted; an all-gather sends 1.5 k for every other rank."""
    words = sent(cc.SparseAllReduce(cc.TopK(ratio=RATIO)), world)
    assert words < 6
    assert words == pytest.approx(3 * (world - 1) / world, rel=0.25)
    if world > 4:
        assert sent(cc.AllGather(cc.TopK(ratio=RATIO)), world) > 2 * words


def energy(x: torch.Tensor) -> float:
    return float(x.double().square().sum())


@pytest.mark.parametrize("world", [2, 8, 32])
@pytest.mark.parametrize("kind", ["spread", "rows", "corner"])
def test_shares_select_nearly_what_one_would(kind: str, world: int) -> None:
    """Of a gradient that all ranks share: the energy of what is sent, against the k largest of the whole. Also where
    all that matters lies in one corner, which contiguous shares would leave to one owner's small part."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(512, 512, generator=g)
    if kind == "rows":  # an embedding: few rows, of very different size
        x *= (torch.arange(512) + 1.0).pow(-1)[torch.randperm(512, generator=g)][:, None]
    if kind == "corner":
        x[8:] = 0.0
    best = energy(x.abs().view(-1).topk(K).values)
    dealt = cc.Simulator(cc.SparseAllReduce(cc.TopK(ratio=RATIO)), world).mean([{"w": x}] * world)[0]["w"]
    assert energy(dealt) > 0.95 * best, energy(dealt) / best
    if kind == "corner":
        cut = cc.Simulator(cc.TwoPhase(cc.TopK(ratio=RATIO), server=False), world).mean([{"w": x}] * world)[0]["w"]
        assert energy(cut) < 0.9 * energy(dealt)


def test_what_cancels_does_not_starve_the_rest() -> None:
    """+-1 on 200 elements of two ranks, whose mean is zero, and small numbers elsewhere, where the mean is not. If what
    the owners drop came back to the ranks, the 200 would be all that is ever selected."""
    g = torch.Generator().manual_seed(0)
    shared = 0.1 * torch.randn(64, 64, generator=g)
    apart = torch.zeros(4096)
    apart[torch.randperm(4096, generator=g)[:200]] = 1.0
    apart = apart.view(64, 64)
    off = {}
    for reducer in (cc.SparseAllReduce(cc.TopK(ratio=RATIO)), cc.AllGather(cc.TopK(ratio=RATIO))):
        simulator = cc.Simulator(cc.ErrorFeedback(reducer), 2)
        applied = torch.zeros(64, 64, dtype=torch.float64)
        for _ in range(400):
            applied += simulator.mean([{"w": shared + apart}, {"w": shared - apart}])[0]["w"]
        off[type(reducer)] = float((applied / 400 - shared).norm() / shared.norm())
    assert off[cc.SparseAllReduce] < 1.5 * off[cc.AllGather] < 0.5
