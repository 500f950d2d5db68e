"""DGC: at density 1 it is an SGD that torch knows; nothing that it accumulates is lost; what was sent rests at zero."""

from __future__ import annotations

import copy
from math import inf, nan, sqrt
from typing import Any

import pytest
import torch
from torch import Tensor

import compcomm as cc
from compcomm.core.structure import Group, check_optimizer
from tests.refusals import refusals, refused

SHAPES = {"w": (30, 40), "b": (40,)}
"""One parameter that is coded, and one that travels exact."""


def _gradients(world: int, step: int) -> list[dict[str, Tensor]]:
    """Multiples of 1/8: with momentum 1/2 and up to four workers every sum of a few steps is exact in fp32."""
    g = torch.Generator().manual_seed(97 * world + step)
    return [{n: torch.randint(-64, 65, s, generator=g) / 8 for n, s in SHAPES.items()} for _ in range(world)]


def _slot(simulator: cc.Simulator, name: str, parameter: str, rank: int = 0) -> Tensor:
    return simulator.stores[rank].state_dict()[name][parameter].view(SHAPES[parameter])


def _held(simulator: cc.Simulator, name: str, parameter: str) -> Tensor:
    """The mean over the ranks."""
    slots = [_slot(simulator, name, parameter, r).double() for r in range(simulator.world)]
    return torch.stack(slots).mean(0)


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("nesterov", [False, True])
def test_everything_sent_and_nothing_masked_is_momentum_sgd(world: int, nesterov: bool) -> None:
    """Bit for bit, where sums are exact: torch averages gradients first, and we average velocities."""
    model = [torch.nn.Parameter(torch.zeros(s)) for s in SHAPES.values()]
    ours, theirs = model, copy.deepcopy(model)
    plain = torch.optim.SGD(ours, lr=0.25)
    momentum = torch.optim.SGD(theirs, lr=0.25, momentum=0.5, nesterov=nesterov)
    simulator = cc.Simulator(cc.DGC(cc.TopK(ratio=1.0), 0.5, nesterov, masking=False), world)
    for t in range(8):
        given = _gradients(world, t)
        mean = simulator.mean(given)[0]
        for p, q, name in zip(ours, theirs, SHAPES, strict=True):
            p.grad, q.grad = mean[name], torch.stack([g[name] for g in given]).mean(0)
        plain.step()
        momentum.step()
        assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True)), f"step {t}"
    assert float(theirs[0].detach().abs().max()) > 1


def test_it_is_so_with_any_numbers_on_one_worker() -> None:
    weight = torch.nn.Parameter(torch.zeros(30, 40))
    other = copy.deepcopy(weight)
    plain, momentum = torch.optim.SGD([weight], lr=0.1), torch.optim.SGD([other], lr=0.1, momentum=0.9)
    simulator = cc.Simulator(cc.DGC(cc.TopK(ratio=1.0), masking=False), 1)
    for t in range(8):
        g = torch.randn(30, 40, generator=torch.Generator().manual_seed(t))
        weight.grad, other.grad = simulator.mean([{"w": g}])[0]["w"], g
        plain.step()
        momentum.step()
        assert torch.equal(weight, other), f"step {t}"


@pytest.mark.parametrize("nesterov", [False, True])
def test_everything_sent_and_masked_is_plain_sgd(nesterov: bool) -> None:
    """u is zeroed in every step; Nesterov's form then has 1 + m of each gradient. What travels exact has momentum."""
    simulator = cc.Simulator(cc.DGC(cc.TopK(ratio=1.0), 0.5, nesterov), 4)
    buffer = torch.zeros(SHAPES["b"])
    for t in range(6):
        given = _gradients(4, t)
        found = simulator.mean(given)[0]
        mean = {n: torch.stack([g[n] for g in given]).mean(0) for n in SHAPES}
        assert torch.equal(found["w"], mean["w"] * (1.5 if nesterov else 1.0))
        buffer = 0.5 * buffer + mean["b"]
        assert torch.equal(found["b"], mean["b"] + 0.5 * buffer if nesterov else buffer)
        assert not _slot(simulator, "momentum", "w").any() and not _slot(simulator, "velocity", "w").any()


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(
    "reducer",
    [
        cc.TopK(ratio=0.05),
        cc.SparseAllReduce(cc.TopK(ratio=0.1)),
        cc.RandK(ratio=0.1),
        cc.TwoPhase(cc.QSGD(bits=2, rounding="nearest")),
    ],
    ids=repr,
)
def test_without_masking_nothing_is_lost(reducer: cc.Reducer, nesterov: bool) -> None:
    """Sum of what was sent + mean v + the owners' residuals = sum of the velocities of momentum SGD, over bad steps and
    a parameter that nobody used."""
    world = 3
    simulator = cc.Simulator(cc.DGC(reducer, 0.9, nesterov, masking=False), world)
    applied, due, u = (torch.zeros(SHAPES["w"], dtype=torch.float64) for _ in range(3))
    for t in range(14):
        given = _gradients(world, t)
        if t in (4, 9):
            given[t % world]["w"][3, 3:6] = torch.tensor([inf, -inf, nan])
        if t in (6, 7):
            for g in given:
                g["w"].zero_()
        means = simulator.mean(given)
        assert simulator.bad == (t in (4, 9))
        if not simulator.bad:
            applied += means[0]["w"]
        if t in (6, 7):
            assert not means[0]["w"].any()
        else:
            g = torch.stack([g["w"].nan_to_num(0.0, 0.0, 0.0) for g in given]).double().mean(0)
            u = 0.9 * (u + g) if nesterov else 0.9 * u + g
            due += u + g if nesterov else u
        held = applied + _held(simulator, "velocity", "w")
        owned = [s.state_dict().get("server", {}).get("w") for s in simulator.stores]
        if owned[0] is not None:
            segment = cc.Segment("w", SHAPES["w"], 0, 1200)
            joined = torch.cat([s for s in owned if s is not None])
            held += (
                simulator.reducer.slots(segment, simulator.world)["server"].natural(joined).double().view(SHAPES["w"])
            )
        torch.testing.assert_close(held, due, rtol=0, atol=2e-4)
        torch.testing.assert_close(_held(simulator, "momentum", "w"), u, rtol=0, atol=2e-4)


@pytest.mark.parametrize("reducer", [cc.TopK(ratio=0.05), cc.SparseAllReduce(cc.TopK(ratio=0.05))], ids=repr)
def test_what_was_sent_has_neither_momentum_nor_velocity(reducer: cc.Reducer) -> None:
    simulator = cc.Simulator(cc.DGC(reducer), 1)
    for t in range(5):
        velocity = _slot(simulator, "velocity", "w") if t else torch.zeros(SHAPES["w"])
        momentum = _slot(simulator, "momentum", "w") if t else torch.zeros(SHAPES["w"])
        (given,) = _gradients(1, t)
        (mean,) = simulator.mean([given])
        sent, new = mean["w"] != 0, 0.9 * momentum + given["w"]
        assert 60 <= int(sent.sum()) <= 70
        assert not _slot(simulator, "momentum", "w")[sent].any()
        assert not _slot(simulator, "velocity", "w")[sent].any()
        torch.testing.assert_close(_slot(simulator, "momentum", "w")[~sent], new[~sent])
        torch.testing.assert_close(_slot(simulator, "velocity", "w")[~sent], (velocity + new)[~sent])


def test_a_bad_step_sends_and_masks_nothing() -> None:
    simulator = cc.Simulator(cc.DGC(cc.TopK(ratio=0.05)), 2)
    given = _gradients(2, 0)
    given[1]["b"][7] = inf
    simulator.mean(given)
    assert simulator.bad
    for rank in range(2):
        for name in ("momentum", "velocity"):
            assert torch.equal(_slot(simulator, name, "w", rank), given[rank]["w"])
    finite = torch.where(torch.arange(40) == 7, 0.0, given[1]["b"])
    assert torch.equal(_slot(simulator, "momentum", "b", 1), finite)


def test_parameters_without_a_gradient_rest() -> None:
    """As in an optimizer that is given None: exact ones and coded ones, whatever their momentum was."""
    simulator = cc.Simulator(cc.DGC(cc.TopK(ratio=0.05)), 2)
    for t in range(3):
        simulator.mean(_gradients(2, t))
    before = [{(s, n): _slot(simulator, s, n, r) for s, n in _KEPT} for r in range(2)]
    means = simulator.mean([{n: torch.zeros(s) for n, s in SHAPES.items()}] * 2)
    assert not any(m.any() for m in means[0].values())
    for rank in range(2):
        for key, old in before[rank].items():
            torch.testing.assert_close(_slot(simulator, *key, rank), old)


_KEPT = (("momentum", "w"), ("momentum", "b"), ("velocity", "w"))


def test_clipping_is_per_parameter_and_by_the_root_of_the_workers() -> None:
    world, clip = 4, 12.0
    simulator = cc.Simulator(cc.DGC(cc.TopK(ratio=0.05), 0.0, clip=clip), world, unscale=0.5)
    given = [{"w": 2.0 * (r + 1) * torch.ones(SHAPES["w"]), "b": 0.01 * torch.ones(SHAPES["b"])} for r in range(world)]
    given[2]["w"][0, 0] = nan  # counts as zero
    simulator.mean(given)
    for rank in range(world):
        norm = float(_slot(simulator, "momentum", "w", rank).norm())
        assert norm == pytest.approx(clip / sqrt(world), rel=1e-5)
        torch.testing.assert_close(_slot(simulator, "momentum", "b", rank), torch.full(SHAPES["b"], 0.005))


def test_densities_of_the_warm_up() -> None:
    scheme = cc.DGC(cc.TopK(ratio=0.001, dense_below=1), warmup=10)
    found = [scheme.density(t) for t in (*range(0, 10, 2), 10, 1 << 30)]
    assert found == pytest.approx([0.316, 0.1, 0.0316, 0.01, 0.00316, 0.001, 0.001], rel=1e-2)
    assert [scheme.density(t) for t in range(1, 10, 2)] == found[:5]
    simulator = cc.Simulator(scheme, 2)
    g = torch.Generator().manual_seed(0)
    for t in range(12):
        given = [{"w": torch.randn(100, 100, generator=g)} for _ in range(2)]
        sent = int((simulator.mean(given)[0]["w"] != 0).sum())
        k = -(-scheme.density(t) * 10_000 // 1)
        assert k < sent <= 2 * k, f"step {t}"


@refusals("""
DGC(TopK(0.01), momentum=1.0) => in [0, 1)
DGC(TopK(0.01), momentum=-0.1) => in [0, 1)
DGC(TopK(0.01), momentum='0.9') => in [0, 1)
DGC(TopK(0.01), clip=0) => above 0
DGC(TopK(0.01), clip=True) => above 0
DGC(TopK(0.01), nesterov=1) => True or False
DGC(TopK(0.01), warmup=-1) => 0 or more
DGC(TopK(0.01), warmup=1.5) => 0 or more
DGC(TopK(0.01), warmup=5, stages=0) => 1 or more
DGC(TopK(k=7), warmup=5) => Use TopK(ratio=0.001), or warmup=0
DGC(QSGD(bits=4, rounding='nearest'), masking=False, warmup=5) => it has none
DGC(Threshold(0.001, stages=4), warmup=5) => no form of density 0.316
DGC(SignScale()) => Use masking=False
DGC(QSGD(bits=4, norm=2)) => Use masking=False
DGC(TernGrad(clip=2.5)) => no contraction
DGC(ErrorFeedback(TopK(0.01))) => gives no error
DGC(Exact()) => nothing to feed back
DGC(PowerSGD(2)) => gives no error
""")
def test_what_it_refuses(call: Any, words: list[str]) -> None:
    refused(call, *words)


def test_double_precision_is_refused() -> None:
    with pytest.raises(TypeError, match="its memory is float32"):
        cc.Simulator(cc.DGC(cc.TopK(ratio=0.05)), 1).mean([{"w": torch.zeros(30, 40, dtype=torch.float64)}])


def _group(**options: object) -> Group:
    return Group("SGD", 1, options)


def test_a_second_momentum_is_refused() -> None:
    scheme = cc.DGC(cc.TopK(ratio=0.05))
    check_optimizer(scheme, {"w": _group(momentum=0), "b": _group(betas=(0.0, 0.99)), "c": _group(lr=1.0)})
    check_optimizer(cc.DGC(cc.TopK(ratio=0.05), momentum=0.0), None)
    with pytest.raises(ValueError, match=r"Pass optimizer= .* second momentum can be ruled out"):
        check_optimizer(scheme, None)
    with pytest.raises(ValueError, match=r"SGD has momentum=0\.8 in parameter group 1 \(with 'b'\), .* Set it to 0"):
        check_optimizer(scheme, {"w": _group(momentum=0), "b": _group(momentum=0.8)})
    with pytest.raises(ValueError, match=r"has betas\[0\]=0\.9 in parameter group 1"):
        check_optimizer(scheme, {"w": _group(betas=(0.9, 0.99))})
    with pytest.raises(ValueError, match="does not step 'w'"):
        check_optimizer(scheme, {"w": None})
    bad = {"w": _group(momentum=0.9), "b": _group(momentum=0.0)}
    settled = cc.settle(cc.Warmup(3, scheme), 2)
    with pytest.raises(ValueError, match=r"momentum=0\.9"):
        check_optimizer(settled, bad)
    check_optimizer(cc.settle(cc.Partition({"b": scheme, "*": cc.ErrorFeedback(cc.TopK(ratio=0.05))}), 2), bad)
    with pytest.raises(ValueError, match=r"momentum=0\.9"):
        check_optimizer(cc.settle(cc.Partition({"w": scheme, "*": cc.Exact()}), 2), bad)


def test_momentum_that_overflows_does_not_stay() -> None:
    """Finite gradients that add up to an infinity: the step is bad, and later ones are good again."""
    simulator = cc.Simulator(cc.DGC(cc.TopK(ratio=0.5, dense_below=0)), 2)
    bad: list[bool] = []
    for step in range(60):
        simulator.mean([{"w": torch.full((4, 4), 3e38 if step in (1, 2) else 1.0)}] * 2)
        bad.append(simulator.bad)
        assert all(simulator.stores[0].state_dict()[s]["w"].isfinite().all() for s in ("momentum", "velocity"))
    assert bad[2]
    assert not any(bad[40:])
