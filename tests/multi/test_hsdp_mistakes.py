"""What goes wrong between nodes, and is told: groups that join unlike shards, replicas that differ, steps while
gradients are held, modules that come late, ranks that do not agree on what is between."""

from __future__ import annotations

import os
from contextlib import redirect_stderr
from io import StringIO
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import compcomm as cc
from tests.patience import patience

from . import models
from .harness import Workers
from .test_hsdp import Net, batch, sharded, train

pytestmark = pytest.mark.multi

EF4 = cc.ErrorFeedback(cc.QSGD(bits=4, rounding="nearest"))


def crossed(rank: int, world: int) -> Any:
    groups = [dist.new_group(ranks) for ranks in ([0, 3], [1, 2])]
    model = sharded()
    told = models.caught(lambda: cc.attach(model, cc.Exact(), between=groups[rank in (1, 2)]))
    cc.attach(model, cc.Exact(), between="replicate")  # nothing is left behind
    train(model, 1)
    return told


def test_a_group_of_unlike_shards_is_refused(four: Workers) -> None:
    for told in four.run(crossed):
        models.said(told, "holds shard 0, rank . holds shard 1|holds shard 1, rank . holds shard 0")


def unlike(rank: int, world: int) -> Any:
    model = sharded()
    hook: Any = cc.attach(model, cc.Exact(), between="replicate", check_every=1)
    optimizer = train(model, 1, hook)
    with torch.no_grad():
        if rank == 3:
            model.head.weight.to_local()[0, 0] += 1
    return models.caught(lambda: train(model, 2, hook, first=1, optimizer=optimizer))


def test_check_every_compares_the_nodes(four: Workers) -> None:
    for told in four.run(unlike):
        assert told[0] == "DivergenceError", told
        models.said(told, r"'head.weight' differs between the ranks \(rank 3 from the others\)")


def stepped(rank: int, world: int) -> Any:
    model = sharded()
    hook: Any = cc.attach(model, cc.Exact(), between="replicate")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    hook.hold = True
    model(batch(0)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    hook.hold = False
    return models.caught(lambda: model(batch(1)).sum().backward())


def test_a_step_while_gradients_are_held_is_told(four: Workers) -> None:
    for told in four.run(stepped):
        models.said(told, "optimizer stepped while gradients of unit .* were held")


def frozen(rank: int, world: int) -> Any:
    model = sharded()
    hook: Any = cc.attach(model, cc.Exact(), between="replicate")
    hook.hold = True
    model(batch(0)).sum().backward()
    before = model.head.weight.grad.to_local().clone()
    model.head.weight.requires_grad_(False)
    hook.hold = False
    model(batch(1)).sum().backward()
    return torch.equal(model.head.weight.grad.to_local(), before)


def test_what_is_frozen_keeps_what_was_held(four: Workers) -> None:
    assert all(four.run(frozen))


def late(rank: int, world: int) -> Any:
    told: dict[str, Any] = {}
    for host in ("fsdp2", "hsdp"):
        torch.manual_seed(0)
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
        options: dict[str, Any] = {} if host == "fsdp2" else {"mesh": mesh["shard"]}
        model: Any = Net()
        for block in model.blocks:
            fully_shard(block, **options)
        with redirect_stderr(StringIO()) as said:
            hook: Any = cc.attach(model, EF4, between=None if host == "fsdp2" else "replicate")
        fully_shard(model, **options)
        told[host] = models.caught(lambda net=model: net(batch(0)).sum().backward()), said.getvalue(), repr(hook)
    return told


def test_a_module_that_is_sharded_after_attach_is_told(four: Workers) -> None:
    for rank, told in enumerate(four.run(late)):
        for error, said, hook in told.values():
            models.said(error, "fully_shard has taken '.*' and . more after attach.*Call attach last")
            assert "detached" in hook
            assert ("no module that fully_shard has taken" in said) is (rank == 0), "the line says so already"


def forgotten(rank: int, world: int) -> Any:
    with redirect_stderr(StringIO()) as said:
        hook: Any = cc.attach(sharded(), EF4)
    with redirect_stderr(StringIO()) as between:
        cc.attach(sharded(), EF4, between="replicate")
    return said.getvalue(), models.caught(lambda: setattr(hook, "hold", True)), between.getvalue()


def test_the_line_says_what_is_averaged_over_nobody(four: Workers) -> None:
    for rank, (said, hold, between) in enumerate(four.run(forgotten)):
        assert said.count("between='replicate'") == (rank == 0) and said.count("less than a reduce-scatter") == (
            rank == 0
        )
        models.said(hold, "sharded inside nodes have it")
        assert not between or (
            "between 2 nodes" in between and "memory" in between and "nothing is averaged" not in between
        )


def disagree(rank: int, world: int) -> Any:
    told: dict[str, Any] = {}
    os.environ["GROUP_RANK"] = str(rank // 2)
    for case, mine in (("none", None), ("reducer", "nodes"), ("word", "node")):
        given = mine if rank == 1 else "nodes"
        reducer: Any = 5 if case == "reducer" and rank == 1 else EF4
        told[f"ddp {case}"] = models.caught(
            lambda b=given, r=reducer: models.wrap(models.mlp(), r, between=b, timeout=patience(20))
        )
    del os.environ["GROUP_RANK"]
    model = sharded()
    told["hsdp"] = models.caught(lambda: cc.attach(model, EF4, between=None if rank % 2 else "replicate"))
    return told


def test_ranks_that_disagree_on_what_is_between(four: Workers) -> None:
    for rank, told in enumerate(four.run(disagree)):
        models.said(told["ddp none"], r"between: 'nodes' on ranks 0, 2, 3, None on rank 1")
        models.said(told["ddp reducer"], "5" if rank == 1 else "rank 1 could not attach: .*5")
        models.said(
            told["ddp word"], "'nodes', or the process group" if rank == 1 else "rank 1 could not attach: .*'node'"
        )
        models.said(told["hsdp"], r"between: 'replicate' on rank 0, None on rank 1")


def poisoned(rank: int, world: int) -> Any:
    model = sharded()
    hook: Any = cc.attach(model, EF4, between="replicate")
    train(model, 1, hook)
    state = hook.portable_state_dict()
    next(iter(state["slots"]["residual"].values())).view(-1)[0] = float("nan")
    return models.caught(lambda: hook.load_portable_state_dict(state))


def test_memory_that_is_not_finite_is_refused(four: Workers) -> None:
    for told in four.run(poisoned):
        models.said(told, "is not finite")
