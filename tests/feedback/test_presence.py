"""Steps in which some ranks take no part: what travels exact is the mean of those who are there."""

from __future__ import annotations

import pytest
import torch

import compcomm as cc


@pytest.mark.parametrize("here", [[0], [1, 3], [0, 1, 3], [0, 1, 2, 3]])
@pytest.mark.parametrize("momentum", [1.0, 0.5])
def test_an_exact_parameter_gets_the_mean_of_those_who_are_there(here: list[int], momentum: float) -> None:
    simulator = cc.Simulator(cc.EF21(cc.TopK(ratio=0.1), momentum=momentum, start=False), 4)
    for step in range(3):
        draw = torch.Generator().manual_seed(step)
        given = [{"w": torch.randn(40, 30, generator=draw), "bias": torch.randn(7, generator=draw)} for _ in range(4)]
        found = simulator.mean([{n: t.clone() for n, t in g.items()} for g in given], present=here)
        due = torch.stack([given[rank]["bias"] for rank in here]).mean(0)
        for means in found:
            assert torch.equal(means["bias"], found[0]["bias"]) and torch.equal(means["w"], found[0]["w"])
            torch.testing.assert_close(means["bias"], due)
