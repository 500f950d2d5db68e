"""The simulator with ranks that share nodes, and the bytes that leave one."""

from __future__ import annotations

import pytest
import torch

import compcomm as cc
from compcomm.core.collectives import AllReduce, Collective
from compcomm.core.drive import OutOfStepError, in_groups

SHAPES = {"a": (64, 32), "b": (32,), "c": (16, 16), "d": (100,), "e": (128, 8)}
EF4 = cc.ErrorFeedback(cc.QSGD(bits=4, rounding="nearest"))


def gradients(world: int, step: int = 0) -> list[dict[str, torch.Tensor]]:
    g = torch.Generator().manual_seed(step)
    return [{n: torch.randn(s, generator=g) for n, s in SHAPES.items()} for _ in range(world)]


def nodes(given: list[dict[str, torch.Tensor]], per: int) -> list[dict[str, torch.Tensor]]:
    parts = [given[i : i + per] for i in range(0, len(given), per)]
    return [{n: torch.stack([g[n] for g in part]).mean(0) for n in SHAPES} for part in parts]


@pytest.mark.parametrize("reducer", [cc.Exact(), EF4, cc.PowerSGD(2), cc.EF21(cc.QSGD(bits=4))], ids=repr)
def test_what_leaves_a_node_is_what_the_dry_run_says(reducer: cc.Reducer) -> None:
    simulator, layout = cc.Simulator(reducer, 6, ranks_per_node=3), cc.Layout.of(SHAPES.items())
    for t in range(3):
        before = simulator.sent[:]
        simulator.mean(gradients(6, t))
        sent = [b - a for a, b in zip(before, simulator.sent, strict=True)]
    for rank in (0, 3):
        cost = cc.cost(reducer, layout, 6, rank, ranks_per_node=3)
        assert sum(sent[rank : rank + 3]) == cost.sent
        assert cost.dense == 2 * (4 * layout.numel * 5 // 6)
    flat = cc.cost(reducer, layout, 2).sent
    assert flat <= cost.sent <= flat + 3 * 64, "the bytes of one rank per node, and three messages in place of one"


def test_memory_is_that_of_the_nodes() -> None:
    ours, flat = cc.Simulator(EF4, 4, ranks_per_node=2), cc.Simulator(EF4, 2)
    for t in range(3):
        given = gradients(4, t)
        ours.mean(given)
        flat.mean(nodes(given, 2))
    found, due = ours.merged(), flat.merged()[0]["residual"]
    for merged in found:
        assert merged["residual"].keys() == due.keys() == {"a", "e"}
        assert all(torch.equal(merged["residual"][n], due[n]) for n in due)
    held = [store.nbytes() for store in ours.stores]
    assert sum(held[:2]) == flat.stores[0].nbytes() and max(held) < flat.stores[0].nbytes()


@pytest.mark.parametrize("inside", ["QSGD(bits=8, rounding='nearest')", "QSGD(bits=8)", "Cast(bfloat16)"])
def test_ranks_agree_where_the_inside_is_coded(inside: str) -> None:
    simulator = cc.Simulator(cc.Exact(), 4, ranks_per_node=2, inside=cc.parse(inside))
    given = gradients(4)
    means, due = simulator.mean(given), nodes(given, 4)[0]
    for n in SHAPES:
        assert all(torch.equal(means[0][n], m[n]) for m in means)
        assert float((means[0][n] - due[n]).norm() / due[n].norm()) < 0.02
    assert not torch.equal(means[0]["a"], due["a"])


def test_all_ranks_know_of_a_bad_step() -> None:
    for rank in range(4):
        simulator = cc.Simulator(EF4, 4, ranks_per_node=2)
        simulator.mean(gradients(4))
        before = simulator.merged()[0]["residual"]
        given = gradients(4, 1)
        given[rank]["e"][3, 3] = float("inf")
        means = simulator.mean(given)
        assert simulator.bad and all(m["e"].isnan().all() for m in means)
        after = simulator.merged()[0]["residual"]
        assert all(after[n].isfinite().all() for n in before)


def test_what_cannot_be_nodes_is_refused() -> None:
    with pytest.raises(ValueError, match="equally many"):
        cc.Simulator(EF4, 5, ranks_per_node=2)
    with pytest.raises(ValueError, match="equally many"):
        cc.cost(EF4, cc.Layout.of(SHAPES.items()), 5, ranks_per_node=2)
    with pytest.raises(ValueError, match="1 or more"):
        cc.Simulator(EF4, 4, ranks_per_node=0)
    with pytest.raises(ValueError, match="one of the two"):
        cc.Simulator(cc.Exact(), 4, ranks_per_node=2, rows=True)
    with pytest.raises(ValueError, match="there is no inside"):
        cc.Simulator(EF4, 4, inside=cc.QSGD(bits=8))
    with pytest.raises(ValueError, match="part of the elements"):
        cc.Simulator(EF4, 4, ranks_per_node=2, inside=cc.TopK(0.1))
    with pytest.raises(ValueError, match="owns a part"):
        cc.Simulator(cc.EF21(cc.TopK(0.1)), 4, ranks_per_node=2).mean(gradients(4), present=[0, 1, 2])


def test_groups_that_wait_for_each_other_are_found() -> None:
    def ring(order: list[str]) -> object:
        for axis in order:
            yield AllReduce(torch.zeros(1), axis=axis)

    def group(rank: int, op: Collective) -> tuple[int, ...]:
        return {"left": (0, 1), "right": (0, 1)}[op.axis]

    flows = [ring(["left", "right"]), ring(["right", "left"])]
    with pytest.raises(OutOfStepError, match="wait for each other"):
        list(in_groups(flows, group))  # type: ignore[arg-type]
