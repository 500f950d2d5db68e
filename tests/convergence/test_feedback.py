"""Error feedback: nothing is lost, the virtual iterate takes exact steps, and the tight rate holds at every step."""

from __future__ import annotations

from math import sqrt

import pytest
import torch
from torch import Tensor

import compcomm as cc
from compcomm.core.source import Source

CONTRACTIONS = [
    cc.TopK(k=3, dense_below=1),
    cc.SignScale(block=16, dense_below=1),
    cc.QSGD(bits=2, rounding="nearest", block=16, dense_below=1),
    cc.QSGD(bits=4, rounding="nearest", block=16, dense_below=1),
    cc.Cast(torch.bfloat16, 0),
]


def _residual(simulator: cc.Simulator, rank: int = 0) -> Tensor:
    return simulator.stores[rank].state_dict()["residual"]["w"].double()


def _mean(simulator: cc.Simulator, gradients: list[Tensor]) -> Tensor:
    """The mean of fp64 vectors, through the fp32 machinery."""
    return simulator.mean([{"w": g.float().view(1, -1)} for g in gradients])[0]["w"].double().view(-1)


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("compressor", CONTRACTIONS, ids=repr)
def test_virtual_iterate(compressor: cc.Compressor, world: int) -> None:
    """x~ = x - gamma (mean residual + owners' residuals) follows plain gradient descent on the gradients at x."""
    g = torch.Generator().manual_seed(0)
    d, rate = 40, 0.05
    a = torch.randn(world, d, d, generator=g, dtype=torch.float64) / sqrt(d)
    b = torch.randn(world, d, generator=g, dtype=torch.float64)
    simulator = cc.Simulator(cc.ErrorFeedback(compressor), world)
    x = torch.ones(d, dtype=torch.float64)
    virtual = x.clone()
    for _ in range(40):
        gradients = [m @ m.T @ x - v for m, v in zip(a, b, strict=True)]
        x = x - rate * _mean(simulator, gradients)
        virtual = virtual - rate * torch.stack(gradients).mean(0)
        held = sum(_residual(simulator, r) for r in range(world)) / world
        shares = [s.state_dict().get("server", {}).get("w") for s in simulator.stores]
        held = held + torch.cat([s.double() for s in shares if s is not None] or [torch.zeros(d)])
        assert torch.allclose(x - rate * held, virtual, rtol=0, atol=1e-6)


def _rate(mu: float, smooth: float, eps: float) -> tuple[float, float]:
    """(optimal step, contraction of the Lyapunov function) of feedback with |x - C(x)|^2 <= eps |x|^2."""
    root = sqrt(eps)
    step = 2 / (smooth + mu) * (1 - root) / (1 + root)
    inner = sqrt((smooth - mu) ** 2 + 16 * smooth * mu * root / (1 + root) ** 2)
    weight = step / (smooth + mu) * ((1 - root) * (smooth - mu) + (1 + root) * inner)
    return step, root + 0.25 * (1 + root) * (smooth - mu) * weight


def test_rates_by_hand() -> None:
    assert _rate(0.1, 1.0, 0.7) == pytest.approx((0.16170, 0.96816), abs=1e-5)
    assert _rate(0.1, 1.0, 0.9) == pytest.approx((0.04788, 0.99047), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("d", "compressor"), [*((10, c) for c in CONTRACTIONS), (20, cc.TopK(k=2, dense_below=1))])
def test_tight_rate_holds_at_every_step(d: int, compressor: cc.Compressor, seed: int) -> None:
    """V = |z|^2 - 2<z, e> + (1 + 1/sqrt(eps))|e|^2, z = x - x*: V falls by the factor rho in every single step.

    One worker, the learning rate inside the memory, a quadratic with eigenvalues from mu to L in a random basis.
    """
    delta = compressor.delta(d)
    assert delta is not None
    mu, smooth, eps = 0.1, 1.0, 1 - delta
    step, rho = _rate(mu, smooth, eps)
    g = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64)).Q
    hessian = basis @ torch.diag(torch.linspace(mu, smooth, d, dtype=torch.float64)) @ basis.T
    z = torch.randn(d, generator=g, dtype=torch.float64)
    simulator = cc.Simulator(cc.ErrorFeedback(cc.AllGather(compressor)), 1)
    v, first = float(z.square().sum()), float(z.square().sum())
    worst = 0.0
    for _ in range(300):
        z = z - _mean(simulator, [step * (hessian @ z)])
        e = _residual(simulator)
        after = float(z.square().sum() - 2 * z @ e + (1 + 1 / sqrt(eps)) * e.square().sum())
        worst = max(worst, after / v)
        assert after <= rho * v + 1e-6 * v, f"V grows by {after / v} where {rho} is the rate"
        v = after
        if v < 1e-10 * first:
            break
    assert 0.2 * rho < worst, "the bound is not vacuous"


def test_why_feedback_asks_for_a_contraction() -> None:
    """4-bit QSGD with the L2 norm in blocks of 512, unshrunk: its residual grows without bound; shrunk, it does not."""
    g = torch.Generator().manual_seed(0)
    c = cc.QSGD(bits=4, norm=2, dense_below=1)
    layout = cc.Layout.of([("w", (8, 512))])
    plain = cc.Bucket(torch.zeros(layout.numel), layout)
    nearest = cc.Simulator(cc.ErrorFeedback(cc.QSGD(bits=4, rounding="nearest", dense_below=1)), 1)
    shrunk = cc.Simulator(cc.ErrorFeedback(c), 1)
    sizes: list[float] = []
    for t in range(40):
        gradient = torch.randn(layout.numel, generator=g)
        c.encode_(Source(plain, cc.Bucket(gradient, layout)), cc.Rng(step=t))
        sizes.append(float(plain.flat.norm() / gradient.norm()))
        for simulator in (nearest, shrunk):
            simulator.mean([{"w": gradient.view(8, 512)}])
    assert sizes[19] > 10 and sizes[39] > 4 * sizes[19]
    size = sqrt(layout.numel)
    assert float(_residual(nearest).norm()) / size < 0.3
    assert float(_residual(shrunk).norm()) / size < 10
    assert repr(shrunk.reducer) == "ErrorFeedback(AllGather(Contractive(QSGD(bits=4, norm=2, dense_below=1))))"
