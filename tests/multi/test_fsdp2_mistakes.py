"""attach on a model of ``fully_shard``, on real processes: what it refuses is refused on every rank with the cure,
nothing stays attached, and the next attach works."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp._fully_shard._fsdp_common import FSDPMeshInfo, ShardPlacementResult
from torch.distributed.tensor import Shard
from torch.nn.parallel import DistributedDataParallel as DDP

import compcomm as cc

from . import models, sharded
from .harness import Crew, Workers
from .sharded import EF4, fully_shard

pytestmark = pytest.mark.multi


class Custom:
    """Somebody else's collective."""

    def allocate(self, size: Any, *, dtype: Any, device: Any) -> Any:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: Any, input_tensor: Any, group: Any, op: Any, async_op: bool = False) -> None:
        dist.reduce_scatter_tensor(output_tensor, input_tensor, op, group)


def refusing(rank: int, world: int) -> Any:
    """One model, refused in many ways, then attached and trained; what is refused afterwards."""
    told: dict[str, Any] = {}

    def refused(name: str, reducer: Any = "Exact()", on: Any = None, **options: Any) -> None:
        told[name] = models.caught(lambda: sharded.attach(model if on is None else on, reducer, **options))

    model: Any = sharded.net()
    refused("unsharded")
    sharded.shard(model)
    refused("PowerSGD", "PowerSGD(2)")
    refused("SharedScale", "ErrorFeedback(SharedScale(QSGD(bits=4,rounding='nearest')))")
    refused("group", group=dist.group.WORLD)
    refused("timeout", timeout=-1)
    refused("no reducer", 5)
    refused("other reducers", "Exact()" if rank else EF4)
    refused("other seeds", seed=rank)
    refused("one rank alone", "Exact()" if rank else 5)
    refused("weights: random", weights=cc.QSGD(bits=8))
    refused("weights: sparse", weights=cc.TopK(ratio=0.1))
    refused("weights: a reducer", weights=cc.parse(EF4))
    refused("weights: others", weights=cc.QSGD(bits=8 - rank, rounding="nearest"))
    model.blocks[0].set_custom_reduce_scatter(Custom())
    refused("custom")
    model.blocks[0].set_custom_reduce_scatter(_default(model.blocks[1]))
    model.blocks[0].set_allocate_memory_from_process_group_for_comm(True)
    refused("another allocator")
    model.blocks[0].set_allocate_memory_from_process_group_for_comm(False)
    ddp = DDP(sharded.net())
    refused("weights on DDP", on=ddp, weights=cc.QSGD(bits=8, rounding="nearest"))
    told["nothing is left"] = any(len(b._forward_pre_hooks) != 1 for b in model.blocks), _default(model.blocks[0])
    told["nothing is left"] = told["nothing is left"][0], type(told["nothing is left"][1]).__name__
    hook = sharded.attach(model, EF4)
    refused("twice")
    losses, _ = sharded.train(model, rank, range(2))
    refused("twice, later")
    told["symmetric memory"] = models.caught(lambda: model.set_symm_mem_for_comm())
    hook.detach()
    told["after detach"] = models.caught(hook.check)
    refused("after a forward pass")
    sharded.train(model, rank, range(2))  # as stock
    return told, losses, hook.step


def _default(module: Any) -> Any:
    return module._get_fsdp_state()._fsdp_param_group._reduce_scatter_comm


REFUSED = {
    "unsharded": ("TypeError", "or one that fully_shard(model) has taken"),
    "PowerSGD": ("ValueError", "PowerSGD"),
    "SharedScale": ("ValueError", "SharedScale"),
    "group": ("ValueError", "Leave it out"),
    "timeout": ("ValueError", "not a positive time"),
    "no reducer": ("TypeError", "5"),
    "other reducers": ("AgreementError", "reducer"),
    "other seeds": ("AgreementError", "seed"),
    "one rank alone": None,
    "weights: random": ("ValueError", "rounding='nearest'"),
    "weights: sparse": ("ValueError", "a model needs all"),
    "weights: a reducer": ("TypeError", "give a compressor"),
    "weights: others": ("AgreementError", "weights"),
    "custom": ("ValueError", "unit 1 (blocks.0.norm.weight, ...) has Custom for its reduce-scatter"),
    "another allocator": ("ValueError", "set_allocate_memory_from_process_group"),
    "weights on DDP": ("ValueError", "DistributedDataParallel gathers no weights"),
    "twice": ("ValueError", "a compcomm reducer already"),
    "twice, later": ("ValueError", "a compcomm reducer already"),
    "symmetric memory": None,
    "after detach": ("RuntimeError", "was detached"),
    "after a forward pass": ("ValueError", "has had a forward pass"),
}


def test_what_is_refused_leaves_nothing_behind(two: Workers) -> None:
    for told, losses, steps in two.run(refusing):
        assert told.pop("nothing is left") == (False, "DefaultReduceScatter")
        for name, due in REFUSED.items():
            assert told[name][0] != "nothing", name
            if due is not None:
                assert told[name][0] == due[0] and due[1] in told[name][1], (name, told[name])
        assert told.keys() == REFUSED.keys() and steps == 2 and losses[0] > 0


def placed(rank: int, world: int) -> Any:
    """Units over other ranks, over meshes of two dimensions, in several groups, or inside another's root."""
    told: dict[str, Any] = {}
    whole, plane = init_device_mesh("cpu", (4,)), init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))

    def refused(name: str, build: Callable[[Any], Any]) -> None:
        model: Any = sharded.net()
        build(model)
        told[name] = models.caught(lambda: sharded.attach(model, "Exact()"))

    def parts(model: Any) -> None:
        fully_shard(model.blocks[0], mesh=plane["shard"])
        fully_shard(model, mesh=whole)

    def several(model: Any) -> None:
        apart = FSDPMeshInfo(mesh=plane["shard"], shard_mesh_dim=0)

        def place(p: Any) -> Any:
            return ShardPlacementResult(Shard(0), apart) if p.shape == (3, 10) else None

        fully_shard(model, mesh=whole, shard_placement_fn=place)

    refused("several groups", several)
    refused("other ranks", parts)
    refused("two dimensions", lambda model: sharded.shard(model, mesh=plane))
    model = sharded.shard(sharded.net(), mesh=plane["shard"])
    hook = sharded.attach(model, EF4)  # each shard group by itself
    sharded.loss_of(model, rank, 0).backward()
    told["one of two"] = hook.step, hook.steps.transport.world
    model = sharded.shard(sharded.net(), mesh=whole)
    hook = sharded.attach(model.blocks[1], "Exact()")
    told["inside"] = models.caught(lambda: sharded.loss_of(model, rank, 0))
    told["again"] = models.caught(hook.check)
    model.reset_iter_state()
    hook = sharded.attach(sharded.shard(sharded.net(), mesh=whole), "Exact()")
    return told


def test_units_that_cannot_be_averaged_together(four: Workers) -> None:
    for told in four.run(placed):
        assert told["several groups"][0] == "ValueError" and "several parameter groups" in told["several groups"][1]
        assert told["other ranks"][0] == "ValueError" and "over other ranks than unit 0" in told["other ranks"][1]
        assert told["two dimensions"][0] == "ValueError" and "between='replicate'" in told["two dimensions"][1]
        assert told["one of two"] == (1, 2)
        assert told["inside"][0] == "RuntimeError" and "Give attach the outermost one" in told["inside"][1]
        assert told["again"][0] == "RuntimeError" and "was detached" in told["again"][1]


def alone(rank: int, world: int) -> Any:
    """One rank: nothing is sent, and the factor of a user means what it says."""
    both: list[Any] = []
    for reducer in (None, EF4):
        model = sharded.shard(sharded.net())
        model.set_gradient_divide_factor(2.0)
        hook = sharded.attach(model, reducer) if reducer else None
        both.append((sharded.train(model, rank, range(3))[0], sharded.whole(model)))
    assert hook is not None
    saved = hook.portable_state_dict()
    hook.load_portable_state_dict(saved)
    return both[0][0] == both[1][0] and sharded.same(both[0][1], both[1][1]), hook.report().bytes_sent


def test_a_rank_alone(crew: Crew) -> None:
    assert Workers(1, crew=crew).run(alone) == [(True, 0)]
