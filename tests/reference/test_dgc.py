"""DGC equals its naive reference, to the bit, over several steps in the simulator."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import compcomm as cc

from . import topk
from .dgc import DGC

F = np.float32
NAME, N = "w", 1200


def _gradients(world: int, step: int) -> list[np.ndarray]:
    generator = np.random.default_rng(100 * world + step)
    return [(10.0 ** (step % 2) * generator.standard_normal(N)).astype(F) for _ in range(world)]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("masking", [False, True])
@pytest.mark.parametrize("clip", [None, 60.0])
def test_dgc(world: int, nesterov: bool, masking: bool, clip: float | None) -> None:
    ratio, warmup, stages = 0.02, 4, 2
    reducer = cc.DGC(cc.TopK(ratio), 0.9, nesterov, clip, masking, warmup, stages)
    simulator = cc.Simulator(reducer, world, seed=23)

    def code(y: np.ndarray, step: int) -> np.ndarray:
        density = ratio if step >= warmup else ratio ** ((step // 2 + 1) / 3)
        k = int(np.ceil(density * len(y)))
        return topk.decode(topk.encode(y, k), len(y), k)

    plain = DGC(world, N, code, 0.9, nesterov, clip, masking)
    for t in range(8):
        given = _gradients(world, t)
        found = simulator.mean([{NAME: torch.from_numpy(g).view(2, N // 2)} for g in given])
        due = np.zeros(N, F)
        for c in plain.step(given, t):
            due = due + c * F(1.0 / world)
        for rank in range(world):
            assert np.array_equal(found[rank][NAME].view(-1).numpy(), due), f"step {t}"
            state = simulator.stores[rank].state_dict()
            assert np.array_equal(state["velocity"][NAME].numpy(), plain.v[rank])
            assert np.array_equal(state["momentum"][NAME].numpy(), plain.u[rank])
