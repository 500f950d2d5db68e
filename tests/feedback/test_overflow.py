"""Steps that overflow where no single gradient does: found out by the sum, on every rank, and undone."""

from __future__ import annotations

import pytest
import torch

import compcomm as cc
from compcomm.testing.conservation import remembered

HALF = cc.AllReduce(cc.Cast(torch.float16, 0))


def test_a_sum_that_does_not_fit_float16() -> None:
    simulator = cc.Simulator(HALF, 2)
    means = simulator.mean([{"w": torch.full((4, 4), 40_000.0), "b": torch.ones(3)}] * 2)
    assert simulator.bad
    assert all(m["w"].isnan().all() and m["b"].isnan().all() for m in means)
    simulator.mean([{"w": torch.full((4, 4), 30_000.0), "b": torch.ones(3)}] * 2)
    assert not simulator.bad


def test_an_element_that_does_not_fit_float16_is_kept() -> None:
    layout = cc.Layout.of([("w", (2, 2))])
    x = cc.Bucket(torch.tensor([1e5, 1.0, -1e5, 65519.0]), layout)
    payload = cc.Cast(torch.float16, 0).encode_(x, cc.Rng())
    assert payload.status[0] == 1
    assert payload.dense(layout).flat.tolist() == [0.0, 1.0, 0.0, 65504.0]
    assert x.flat.tolist() == [1e5, 0.0, -1e5, 15.0]


def test_it_undoes_the_step_of_others() -> None:
    """The overflow is found in one part of a partition; the residual of the other part takes its payload back."""
    simulator = cc.Simulator(
        cc.Partition({"half": HALF, "*": cc.ErrorFeedback(cc.TopK(ratio=0.1, dense_below=1))}), 2, seed=1
    )
    g = torch.Generator().manual_seed(0)
    applied = torch.zeros(20, 20, dtype=torch.float64)
    due = torch.zeros(20, 20, dtype=torch.float64)
    for t in range(6):
        given = [
            {"half": torch.full((4, 4), 40_000.0 if t == 3 else 1.0), "w": torch.randn(20, 20, generator=g)}
            for _ in range(2)
        ]
        means = simulator.mean(given)
        assert simulator.bad == (t == 3)
        due += torch.stack([x["w"] for x in given]).double().mean(0)
        if not simulator.bad:
            applied += means[0]["w"]
    assert torch.allclose(applied + remembered(simulator, "w", (20, 20)), due, rtol=0, atol=1e-5)


def test_parts_of_equal_size_do_not_share_memory() -> None:
    """Both parts of the partition send as many bytes; each must still hold its own when the step is undone."""
    part = cc.ErrorFeedback(cc.TopK(ratio=0.1, dense_below=1))
    simulator = cc.Simulator(cc.Partition({"a": part, "b": part}), 2, seed=1)
    g = torch.Generator().manual_seed(0)
    applied = {n: torch.zeros(20, 20, dtype=torch.float64) for n in "ab"}
    due = {n: torch.zeros(20, 20, dtype=torch.float64) for n in "ab"}
    for t in range(4):
        given = [{n: torch.randn(20, 20, generator=g) for n in "ab"} for _ in range(2)]
        if t == 2:
            given[1]["b"][0, 0] = float("inf")
        means = simulator.mean(given)
        for n in "ab":
            due[n] += torch.stack([x[n].nan_to_num(0.0, 0.0, 0.0) for x in given]).double().mean(0)
            applied[n] += means[0][n] if t != 2 else 0.0
    for n in "ab":
        assert torch.allclose(applied[n] + remembered(simulator, n, (20, 20)), due[n], rtol=0, atol=1e-5), n


@pytest.mark.parametrize("server", [cc.ErrorFeedback, False])
def test_a_mean_that_does_not_fit_fp32(server: object) -> None:
    """Every rank's gradient is finite, and the owner's sum is not: the second message says so to all."""
    nearest = cc.QSGD(bits=4, rounding="nearest", dense_below=1)
    simulator = cc.Simulator(cc.TwoPhase(nearest, server=server), 3)
    given = [{"w": torch.full((32, 32), 3e38)} for _ in range(3)]
    means = simulator.mean(given)
    assert simulator.bad and all(m["w"].isnan().all() for m in means)
    assert all(t.isfinite().all() for s in simulator.stores for e in s.state_dict().values() for t in e.values())


@pytest.mark.parametrize("reducer", ["ErrorFeedback(MinMax(bits=4))", "ErrorFeedback(Rotated(SignScale()))"])
def test_a_row_of_zeros_rests_after_an_infinity_in_it(reducer: str) -> None:
    """What owners give back leaves nothing of it, not even rounding, in a row that was zero before."""
    simulator, draw = cc.Simulator(cc.parse(reducer), 3), torch.Generator().manual_seed(0)
    for step in range(5):
        given = [{"w": torch.randn(64, 48, generator=draw)} for _ in range(3)]
        for gradients in given:
            gradients["w"][4] = 0.0
        if step == 2:
            given[0]["w"][4, 3] = float("inf")
        mean = simulator.mean(given)[0]["w"]
        assert bool(mean.isnan().all()) if step == 2 else not mean[4].any()
