"""PowerSGD equals its NumPy page, in fp64, over several steps: means, residuals and factors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import compcomm as cc
from compcomm.compressors.sketch import quantiles
from compcomm.core.random import key

from .powersgd import PowerSGD, fresh

SEED, SHAPES = 23, {"w": (24, 31), "conv": (12, 5, 3, 3)}


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("alternate", [False, True])
@pytest.mark.parametrize(("world", "rank"), [(1, 1), (2, 3), (5, 4)])
def test_steps(world: int, rank: int, local: bool, alternate: bool) -> None:
    reducer = cc.PowerSGD(rank=rank, min_ratio=1, alternate=alternate, error="local" if local else "aggregate")
    simulator = cc.Simulator(reducer, world, seed=SEED)
    pages = {
        n: PowerSGD(world, s[0], int(np.prod(s[1:])), rank, key(SEED, n) % 2**64, local, alternate)
        for n, s in SHAPES.items()
    }
    generator = np.random.default_rng(world)
    for t in range(5):
        given = [{n: generator.standard_normal(s).astype(np.float32) for n, s in SHAPES.items()} for _ in range(world)]
        means = simulator.mean([{n: torch.from_numpy(g) for n, g in worker.items()} for worker in given])
        for n, page in pages.items():
            due = page.step([worker[n].reshape(SHAPES[n][0], -1).astype(np.float64) for worker in given], t)
            np.testing.assert_allclose(means[0][n].numpy().reshape(due.shape), due, rtol=0, atol=2e-4)
            for worker, store in enumerate(simulator.stores):
                held = store.state_dict()
                error = page.errors[worker]
                np.testing.assert_allclose(held["residual"][n].numpy().reshape(error.shape), error, rtol=0, atol=2e-4)
                q = held["q"][n].numpy().reshape(page.q.T.shape)
                np.testing.assert_allclose(q, page.q.T, rtol=0, atol=5e-4 * max(1, np.abs(page.q).max()))


@pytest.mark.parametrize("step", [0, 70_000, 2**33 + 5])
def test_fresh_columns(step: int) -> None:
    factor = torch.zeros(3 * 300)
    factor[300] = 1.0
    table = torch.tensor([[0, -1, 300, 0, 0, key(SEED, "w"), 3, 0]])
    torch.ops.compcomm.lowrank_refresh(factor, table, quantiles(), step)
    for k in (0, 2):
        due = fresh(key(SEED, "w") % 2**64, step, k, 300)
        assert np.array_equal(factor[300 * k :][:300].numpy(), due.astype(np.float32))
    assert int((factor[300:600] != 0).sum()) == 1
