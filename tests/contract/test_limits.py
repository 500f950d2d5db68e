"""Limits in which a method must become another, and inputs that it must recover exactly."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import compcomm as cc
from compcomm.testing.inputs import gradient, model_layout
from compcomm.testing.simulated import backwards, gradients, pack, run, step

KEEP_ALL = [
    cc.TopK(ratio=1.0),
    cc.RandK(ratio=1.0),
    cc.RandK(ratio=1.0, unbiased=True),
    cc.TopK(ratio=0.01, dense_below=10**9),
    cc.SignScale(dense_below=10**9),
]


@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize("compressor", KEEP_ALL, ids=repr)
@pytest.mark.parametrize("world", [1, 2, 4])
def test_keeping_everything_is_exact(compressor: cc.Compressor, world: int, feedback: bool) -> None:
    """W is a power of two here, so that dividing before or after the sum makes no difference to the bit."""
    reducer = cc.ErrorFeedback(compressor) if feedback else cc.settle(compressor, world)
    for found, due in zip(run(reducer, world, 3), run(cc.Exact(), world, 3), strict=True):
        for name, mean in due[0].items():
            assert torch.allclose(found[0][name], mean, rtol=0, atol=1e-6 * world)
            assert world > 2 or torch.equal(found[0][name], mean)


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_feedback_around_exact_is_exact(world: int, scale: float) -> None:
    simulator = cc.Simulator(cc.ErrorFeedback(cc.Exact()), world, unscale=1 / scale)
    for t, due in enumerate(run(cc.Exact(), world, 3)):
        given = [{n: v * scale for n, v in g.items()} for g in gradients(world, t)]
        found = step(simulator, given, (model_layout(),))
        assert all(torch.equal(found[0][n], due[0][n] * scale) for n in due[0])


def test_warmup_is_exact_and_then_its_reducer() -> None:
    inner = cc.ErrorFeedback(cc.TopK(ratio=0.05))
    found, exact = run(cc.Warmup(2, inner), 2, 4), run(cc.Exact(), 2, 4)
    for t in range(2):
        assert all(torch.equal(found[t][0][n], exact[t][0][n]) for n in exact[t][0])
    assert int((found[2][0]["head"] != 0).sum()) <= 2 * 62  # ceil(0.05 * 1221) from each of two ranks
    late = cc.Simulator(inner, 2, seed=17)
    late.steps = 2
    for t in (2, 3):
        due = step(late, gradients(2, t), (model_layout(),))
        assert all(torch.equal(found[t][0][n], due[0][n]) for n in due[0])


def test_partition_is_each_part_alone() -> None:
    top, sign = cc.ErrorFeedback(cc.TopK(ratio=0.1)), cc.ErrorFeedback(cc.SignScale())
    parted = run(cc.Partition({"layer.*": top, "emb*": sign, "*": cc.Exact()}), 3, 4, backwards)
    alone = {name: run(r, 3, 4, backwards) for name, r in (("top", top), ("sign", sign), ("exact", cc.Exact()))}
    owner = {"layer.weight": "top", "layer.bias": "top", "embedding": "sign"}
    for t in range(4):
        for name, mean in parted[t][0].items():
            due = alone[owner.get(name, "exact")][t][0][name]
            assert torch.allclose(mean, due, rtol=0, atol=1e-6), name
            assert name == "layer.bias" or torch.equal(mean, due), name


@given(st.integers(1, 5), st.integers(2, 40), st.integers(30, 60), st.integers(0, 2**20))
def test_sparse_gradients_are_recovered(world: int, rows: int, columns: int, seed: int) -> None:
    """k-sparse inputs, on other places on every rank: top-k sends all of them, and the mean is exact."""
    g = torch.Generator().manual_seed(seed)
    k = rows * columns // 10 + 1
    tensors = []
    for _ in range(world):
        t = torch.zeros(rows * columns)
        t[torch.randperm(rows * columns, generator=g)[:k]] = torch.randn(k, generator=g)
        tensors.append({"w": t.view(rows, columns)})
    simulator = cc.Simulator(cc.ErrorFeedback(cc.TopK(k=k, dense_below=1)), world)
    mean = simulator.mean(tensors)[0]["w"]
    due = torch.stack([t["w"] for t in tensors]).double().mean(0)
    assert torch.allclose(mean.double(), due, rtol=1e-6, atol=1e-7)
    assert all(not s.state_dict()["residual"]["w"].any() for s in simulator.stores)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_levels_are_recovered(bits: int) -> None:
    """Inputs that lie on the quantiser's levels pass without loss, in two phases too when all ranks agree."""
    s = 2 ** (bits - 1) - 1
    y = (torch.arange(2048) % (2 * s + 1) - s).float().view(32, 64)
    for reducer in (cc.AllGather, cc.TwoPhase):
        simulator = cc.Simulator(cc.ErrorFeedback(reducer(cc.QSGD(bits=bits, rounding="nearest"))), 4)
        for mean in simulator.mean([{"w": y}] * 4):
            assert torch.allclose(mean["w"], y, rtol=1e-6)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 5])
def test_every_rank_adds_noise_of_its_own(world: int) -> None:
    """The variance of the mean of W messages of one vector is that of one message over W."""
    y = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    simulator = cc.Simulator(cc.AllGather(cc.QSGD(bits=2)), world)
    one = cc.Simulator(cc.AllGather(cc.QSGD(bits=2)), 1)
    error, single = 0.0, 0.0
    for _ in range(30):
        error += float((simulator.mean([{"w": y}] * world)[0]["w"] - y).square().sum())
        single += float((one.mean([{"w": y}])[0]["w"] - y).square().sum())
    assert error == pytest.approx(single / world, rel=0.05)


@pytest.mark.parametrize(
    "reducer",
    [cc.ErrorFeedback(cc.TopK(ratio=0.05)), cc.TwoPhase(cc.SignScale(), server=cc.ErrorFeedback), cc.PowerSGD(2)],
    ids=repr,
)
def test_residuals_are_unscaled(reducer: cc.Reducer) -> None:
    """With a loss scale, gradients and means are scaled, and residuals are not: the scale may change."""
    plain, scaled = cc.Simulator(reducer, 2, seed=17), cc.Simulator(reducer, 2, seed=17)
    for t, scale in enumerate((1024.0, 1024.0, 2048.0, 64.0)):
        given, scaled.unscale = gradients(2, t), 1 / scale
        means = step(plain, given, (model_layout(),))[0]
        larger = step(scaled, [{n: v * scale for n, v in g.items()} for g in given], (model_layout(),))[0]
        assert all(torch.equal(larger[n], means[n] * scale) for n in means)
    for a, b in ((a.state_dict(), b.state_dict()) for a, b in zip(plain.stores, scaled.stores, strict=True)):
        for slot in {"residual", "server"} & set(a):
            assert all(torch.equal(t, b[slot][n]) for n, t in a[slot].items())


def test_named_gradients_differ() -> None:
    """The gradients that the checks feed are neither equal between ranks nor between steps."""
    a, b, c = gradient(0, 0)["head"], gradient(1, 0)["head"], gradient(0, 1)["head"]
    assert not torch.equal(a, b) and not torch.equal(a, c)
    assert pack(gradient(0, 0), model_layout()).flat.numel() == model_layout().numel
