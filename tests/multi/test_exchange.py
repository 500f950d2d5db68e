"""Real processes against the simulator, to the bit, and against what the dry run promises."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import compcomm as cc
from compcomm.engine.options import Options
from compcomm.hosts.joining import connect

from . import models
from .harness import Workers

pytestmark = pytest.mark.multi

SHAPES = [("a.weight", (64, 33)), ("a.bias", (64,)), ("b.weight", (40, 50)), ("c.weight", (3, 70000)), ("d", ())]
CUTS = [[0, 1], [2], [3, 4]]


def gradients(rank: int, step: int) -> list[torch.Tensor]:
    """One flat vector per bucket of a rank, a function of (rank, step)."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    return [torch.randn(layout.numel, generator=generator) for layout in layouts()]


def layouts() -> list[cc.Layout]:
    return [cc.Layout.of(SHAPES[i] for i in cut) for cut in CUTS]


def exchange(rank: int, world: int, reducer: str, steps: int) -> Any:
    """Means of the last step, the state, and the bytes per step."""
    parameters: Any = [(n, torch.nn.Parameter(torch.empty(s))) for n, s in SHAPES]
    attachment = cc.Attachment(connect(None, torch.device("cpu"), 20), Options(cc.parse(reducer), seed=7), parameters)
    means: list[torch.Tensor] = []
    for step in range(steps):
        means = gradients(rank, step)
        attachment.begin_step()
        for b, (flat, layout) in enumerate(zip(means, layouts(), strict=True)):
            attachment.submit(cc.Bucket(flat, layout), last=b == len(means) - 1)
        attachment.end_step()
    report = attachment.report()
    state = models.slots(attachment)
    attachment.detach()
    return means, state, report.bytes_sent, report.relative_error


def simulated(reducer: str, world: int, steps: int) -> tuple[Any, cc.Simulator]:
    """Every rank's means of the last step, and the simulator."""
    simulator, expected = cc.Simulator(cc.parse(reducer), world, seed=7), None
    for step in range(steps):
        expected = simulator.step(
            [[cc.Bucket(g, lay) for g, lay in zip(gradients(r, step), layouts(), strict=True)] for r in range(world)]
        )
    return expected, simulator


REDUCERS = [
    "ErrorFeedback(TopK(ratio=0.05))",
    "ErrorFeedback(AllGather(QSGD(bits=4, rounding='nearest')))",
    "TwoPhase(QSGD(bits=4))",
    "ErrorFeedback(TwoPhase(SignScale()))",
    "TwoPhase(Cast(bfloat16))",
    "Partition({'a*': ErrorFeedback(TopK(k=9)), '*': TwoPhase(SignScale())})",
    "Warmup(1, AllGather(Cast(bfloat16)))",
    "ErrorFeedback(SparseAllReduce(TopK(ratio=0.05)))",
    "AllGather(QSGD(bits=4, coding='elias'))",
    "ErrorFeedback(TwoPhase(QSGD(bits=4, rounding='nearest', coding='elias')))",
]


@pytest.mark.turns(2)
@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("reducer", REDUCERS)
def test_processes_equal_the_simulator(request: Any, world: int, reducer: str) -> None:
    workers: Workers = request.getfixturevalue("two" if world == 2 else "three")
    results = workers.run(exchange, reducer=reducer, steps=3)
    expected, simulator = simulated(reducer, world, 3)
    for rank, (means, state, sent, errors) in enumerate(results):
        for b, mean in enumerate(means):
            assert torch.equal(mean, expected[rank][b].flat), (rank, b)
        for slot, entries in simulator.stores[rank].state_dict().items():
            for name, tensor in entries.items():
                assert torch.equal(state[slot][name], tensor), (rank, slot, name)
        if not reducer.startswith("Warmup"):
            settled = cc.settle(cc.parse(reducer), world)
            most = sum(cc.cost(settled, lay, world, rank).sent for lay in layouts())
            assert sent == pytest.approx(simulator.sent[rank] / 3)
            assert sent < most if settled.traits.variable else sent == most
        if reducer == "ErrorFeedback(TopK(ratio=0.05))":
            assert 0.5 < errors["c.weight"] < 0.98
            assert errors["a.bias"] is None


@pytest.mark.parametrize("reducer", ["Exact()", "RandK(ratio=0.3)", "SharedScale(QSGD(bits=4))"])
def test_sums_of_floats_equal_the_simulator_within_rounding(three: Workers, reducer: str) -> None:
    results = three.run(exchange, reducer=reducer, steps=1)
    expected, _ = simulated(reducer, 3, 1)
    for rank, (means, *_) in enumerate(results):
        for b, mean in enumerate(means):
            assert torch.equal(mean, results[0][0][b])
            torch.testing.assert_close(mean, expected[rank][b].flat, rtol=1e-5, atol=1e-6)


POWERS = [
    "PowerSGD(rank=3)",
    "PowerSGD(rank=2, error='local', alternate=True)",
    "Warmup(1, PowerSGD(4, warm_start=False))",
]


@pytest.mark.parametrize("reducer", POWERS)
def test_factors_equal_the_simulator_to_the_bit_between_two(two: Workers, reducer: str) -> None:
    """A sum of two numbers has one value, whoever adds: buckets of factors, residuals and state."""
    results = two.run(exchange, reducer=reducer, steps=3)
    expected, simulator = simulated(reducer, 2, 3)
    for rank, (means, state, sent, errors) in enumerate(results):
        assert all(torch.equal(m, e.flat) for m, e in zip(means, expected[rank], strict=True))
        held = simulator.stores[rank].state_dict()
        assert {"a.weight", "b.weight"} <= held["residual"].keys()
        assert all(torch.equal(state[slot][n], t) for slot, entries in held.items() for n, t in entries.items())
        assert sent == pytest.approx(simulator.sent[rank] / 3)
        assert 0.5 < errors["a.weight"] < 1 and errors["a.bias"] is None


@pytest.mark.parametrize("reducer", POWERS)
def test_factors_of_three_agree_to_the_bit(three: Workers, reducer: str) -> None:
    """A ring adds in an order of its own: near the simulator, and the same on every rank, state included."""
    results = three.run(exchange, reducer=reducer, steps=3)
    expected, _ = simulated(reducer, 3, 3)
    for rank, (means, state, *_) in enumerate(results):
        for b, mean in enumerate(means):
            assert torch.equal(mean, results[0][0][b])
            torch.testing.assert_close(mean, expected[rank][b].flat, rtol=1e-3, atol=1e-3)
        for slot in ("q", "p"):
            assert all(torch.equal(t, results[0][1][slot][n]) for n, t in state.get(slot, {}).items())
