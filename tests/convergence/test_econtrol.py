"""EControl: nothing is lost, the limits of eta, exact optima between unlike ranks, and less noise than EF21."""

from __future__ import annotations

from math import sqrt

import pytest
import torch
from torch import Tensor

import compcomm as cc
from compcomm.testing.inputs import model_layout
from compcomm.testing.simulated import Named, backwards, gradients, rebuilt, slot, step

INF = float("inf")
CODERS = [cc.TopK(ratio=0.05), cc.QSGD(bits=4, rounding="nearest"), cc.QSGD(bits=4)]


def _finite(g: Tensor) -> Tensor:
    return torch.where(g.isfinite(), g, 0.0).double()


@pytest.mark.turns(2)
@pytest.mark.slow
@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("coder", CODERS, ids=repr)
@pytest.mark.parametrize("bad", [(), (0, 3, 4), (5,)], ids=str)
def test_outs_and_errors_add_up_to_the_gradients(coder: cc.Compressor, start: bool, bad: tuple[int, ...]) -> None:
    """Sum of outs + mean e = sum of mean gradients, h follows it on every rank, over bad steps and dead parameters."""
    world = 3
    simulator = cc.Simulator(cc.EControl(cc.AllGather(coder), eta=0.2, start=start), world)
    coded = {s.name: s.shape for s in model_layout().segments if s.numel and not simulator.reducer.exact(s)}
    applied = {n: torch.zeros(shape, dtype=torch.float64) for n, shape in coded.items()}
    sums = [{n: torch.zeros(shape, dtype=torch.float64) for n, shape in coded.items()} for _ in range(world)]
    due = [{n: torch.zeros(shape, dtype=torch.float64) for n, shape in coded.items()} for _ in range(world)]
    for t in range(12):
        given: list[Named] = gradients(world, t)
        if t in bad:
            given[t % world]["head"].view(-1)[3:6] = torch.tensor([INF, -INF, float("nan")])
        dead = {"layer.weight"} if t in (4, 5, 8) else set[str]()
        for name in dead:
            for g in given:
                g[name].zero_()
        means = step(simulator, given, backwards(t) if t % 2 else rebuilt(t))
        assert simulator.bad == (t in bad)
        for n in coded:
            if t not in bad:
                assert n not in dead or not means[0][n].any()
                applied[n] += means[0][n]
            for rank in range(world):
                due[rank][n] += _finite(given[rank][n])
                if t not in bad and n not in dead:
                    sums[rank][n] += slot(simulator, rank, "estimate")[n].double().view(coded[n])
        for n, shape in coded.items():
            errors = [slot(simulator, r, "error")[n].double().view(shape) for r in range(world)]
            for r in range(world):
                assert torch.allclose(sums[r][n] + errors[r], due[r][n], rtol=0, atol=1e-3), (t, r, n)
            mean_due = torch.stack([d[n] for d in due]).mean(0)
            assert torch.allclose(applied[n] + torch.stack(errors).mean(0), mean_due, rtol=0, atol=1e-3), (t, n)


def test_the_identity_gives_plain_gradients() -> None:
    simulator = cc.Simulator(cc.EControl(cc.TopK(ratio=1.0, dense_below=1)), 3)
    assert repr(simulator.reducer) == "EControl(AllGather(TopK(ratio=1.0, dense_below=1)), eta=1.0)"
    for t in range(20):
        given = gradients(3, t)
        means = simulator.mean(given)
        for n, mean in means[0].items():
            assert torch.allclose(mean, torch.stack([g[n] for g in given]).mean(0), rtol=1e-5, atol=1e-5)
        for rank in range(3):
            assert all(float(e.abs().max()) < 1e-4 for e in slot(simulator, rank, "error").values() if e.numel())


def _distance(reducer: cc.Reducer, zeta: float, sigma: float, rate: float, steps: int) -> float:
    """Mean |x - x*|^2 over the last fifth of the run: five least-squares problems with unlike optima and curvatures,
    f_i = i^2/(2n) |x|^2 - <b_i, x>, and noise of norm sigma in every gradient."""
    g = torch.Generator().manual_seed(1)
    d, n = 60, 5
    a = torch.arange(1, n + 1, dtype=torch.float64).square() / n
    b = torch.randn(n, d, generator=g, dtype=torch.float64) * (zeta / torch.arange(1, n + 1).view(-1, 1))
    best = b.sum(0) / a.sum()
    dtype = getattr(reducer, "dtype", torch.float32)
    x, total, tail = torch.zeros(d, dtype=torch.float64), 0.0, steps // 5
    simulator = cc.Simulator(reducer, n)
    for t in range(steps):
        noise = torch.randn(n, d, generator=g, dtype=torch.float64) * (sigma / sqrt(d))
        given = [{"w": (a[i] * x - b[i] + noise[i]).to(dtype).view(1, -1)} for i in range(n)]
        x = x - rate * simulator.mean(given)[0]["w"].double().view(-1)
        total += float((x - best).square().sum()) / tail if t >= steps - tail else 0.0
    return total


TOP = cc.TopK(k=6, dense_below=1)
DOUBLE = torch.float64


@pytest.mark.slow
def test_exact_between_unlike_ranks() -> None:
    """Without noise it reaches the optimum, where error feedback stalls in proportion to the step's square."""
    assert _distance(cc.EControl(TOP, eta=0.1, dtype=DOUBLE), 10.0, 0.0, 0.03, 350) < 1e-12
    assert _distance(cc.ErrorFeedback(TOP), 10.0, 0.0, 0.03, 350) > 1e-4
    assert _distance(cc.EF21(TOP, dtype=DOUBLE), 10.0, 0.0, 0.03, 350) < 1e-12


@pytest.mark.slow
def test_less_noise_than_ef21() -> None:
    plain, controlled, estimated = (
        _distance(scheme, 10.0, 5.0, 0.02, 600) for scheme in (cc.Exact(), cc.EControl(TOP, eta=0.1), cc.EF21(TOP))
    )
    assert plain < controlled < 0.6 * estimated
    assert controlled < 5 * plain


@pytest.mark.full
def test_too_strong_feedback_diverges() -> None:
    assert not _distance(cc.EControl(TOP, eta=1.0, dtype=DOUBLE), 10.0, 0.0, 0.02, 600) < 10.0


def test_eta_is_delta_where_there_is_one() -> None:
    assert repr(cc.settle(cc.EControl(cc.TopK(0.01)), 4)) == "EControl(AllGather(TopK(ratio=0.01)), eta=0.01)"
