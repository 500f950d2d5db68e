"""Two-phase and error feedback equal their naive references, to the bit, over several steps in the simulator."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

import compcomm as cc
from compcomm.core.random import key

from . import qsgd, sign, topk
from .error_feedback import ErrorFeedback
from .two_phase import two_phase

F = np.float32
SEED, NAME, N = 23, "w", 1200
Code = Callable[[np.ndarray, int, int, int], np.ndarray]


def _qsgd(rounding: str) -> Code:
    def code(y: np.ndarray, offset: int, rank: int, step: int) -> np.ndarray:
        draw = (key(SEED, NAME) % 2**64, step, rank, offset) if rounding == "stochastic" else None
        return qsgd.decode(qsgd.encode(y, 7, 4, False, 128, 1.0, draw), len(y), 7, 4, 128)

    return code


def _sign(y: np.ndarray, offset: int, rank: int, step: int) -> np.ndarray:
    return sign.decode(sign.encode(y, "l1", 128), len(y), 128)


def _topk(y: np.ndarray, offset: int, rank: int, step: int) -> np.ndarray:
    k = max(1, int(np.ceil(0.05 * len(y))))
    return topk.decode(topk.encode(y, k), len(y), k)


DENSE = {
    "nearest": (cc.QSGD(bits=4, rounding="nearest", block=128), _qsgd("nearest")),
    "stochastic": (cc.QSGD(bits=4, block=128), _qsgd("stochastic")),
    "sign": (cc.SignScale(block=128), _sign),
}


def _gradients(world: int, step: int) -> list[np.ndarray]:
    generator = np.random.default_rng(100 * world + step)
    return [generator.standard_normal(N).astype(F) for _ in range(world)]


def _step(simulator: cc.Simulator, gradients: list[np.ndarray]) -> np.ndarray:
    means = simulator.mean([{NAME: torch.from_numpy(g).view(2, N // 2)} for g in gradients])
    assert all(torch.equal(means[0][NAME], m[NAME]) for m in means)
    return means[0][NAME].view(-1).numpy()


@pytest.mark.parametrize("world", [1, 2, 3, 7, 11])
@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("server", [True, False])
def test_two_phase_under_feedback(name: str, world: int, server: bool) -> None:
    compressor, code = DENSE[name]
    if name == "stochastic":  # no contraction: without feedback then
        if server:
            return
        reducer: cc.Reducer = cc.TwoPhase(compressor, server=False)
    else:
        reducer = cc.ErrorFeedback(cc.TwoPhase(compressor, server=cc.ErrorFeedback if server else False))
    simulator = cc.Simulator(reducer, world, seed=SEED)
    residual = [np.zeros(N, F) for _ in range(world)]
    owners = [np.zeros(N, F)[s] for s in _shares(world)] if server else None
    for t in range(3):
        gradients = _gradients(world, t)
        found = _step(simulator, gradients)
        inputs = gradients if name == "stochastic" else [e + g for e, g in zip(residual, gradients, strict=True)]
        due = two_phase(inputs, 128, lambda y, offset, rank, t=t: code(y, offset, rank, t), residual, owners)
        assert np.array_equal(found, due), f"step {t}"
    for rank in range(world if name != "stochastic" else 0):
        state = simulator.stores[rank].state_dict()
        assert np.array_equal(state["residual"][NAME].numpy(), residual[rank])
        if owners is not None:
            assert np.array_equal(state["server"][NAME].numpy(), owners[rank])


def _shares(world: int) -> list[slice]:
    from .two_phase import shares

    return shares(N, world, 128)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("name", ["nearest", "sign", "topk"])
def test_error_feedback_over_an_all_gather(name: str, world: int) -> None:
    compressor, code = {**DENSE, "topk": (cc.TopK(ratio=0.05), _topk)}[name]
    simulator = cc.Simulator(cc.ErrorFeedback(cc.AllGather(compressor)), world, seed=SEED)
    plain = ErrorFeedback(world, N, lambda y, rank, step: code(y, 0, rank, step))
    scale = F(1.0 / world)
    for t in range(4):
        gradients = _gradients(world, t)
        found = _step(simulator, gradients)
        sent = plain.step(gradients, t)
        due = np.zeros(N, F)
        for c in sent:
            due = due + (c * scale if name == "topk" else c)  # sparse values are scaled one by one
        due = due if name == "topk" else due * scale
        assert np.array_equal(found, due), f"step {t}"
        for rank in range(world):
            residual = simulator.stores[rank].state_dict()["residual"][NAME].numpy()
            assert np.array_equal(residual, plain.residual[rank])


def test_a_learning_rate_outside_the_memory_is_the_published_form() -> None:
    """While the rate is constant, lr * EF(g) is EF(lr * g) for a positively homogeneous compressor."""
    rate, world = 0.25, 2
    inside = cc.Simulator(cc.ErrorFeedback(cc.TopK(ratio=0.05)), world)
    outside = cc.Simulator(cc.ErrorFeedback(cc.TopK(ratio=0.05)), world)
    for t in range(5):
        gradients = _gradients(world, t)
        a = _step(inside, [F(rate) * g for g in gradients])
        b = F(rate) * _step(outside, gradients)
        assert np.array_equal(a, b)
