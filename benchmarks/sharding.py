"""One model on several ranks, by any of the hosts that compcomm attaches to: whole, sharded, or in two levels.

ddp            DistributedDataParallel
fsdp2          fully_shard over all ranks
hsdp           fully_shard inside nodes; between them shards are averaged, by FSDP itself where there is no reducer
hierarchical   DistributedDataParallel; exact inside nodes, the reducer between them
"""

from __future__ import annotations

import os
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn.parallel import DistributedDataParallel

import compcomm as cc

HOSTS = ("ddp", "fsdp2", "hsdp", "hierarchical")
TWO_LEVELS = ("hsdp", "hierarchical")


def lay_out(host: str, nodes: int) -> DeviceMesh | None:
    """The ranks as the host wants them; all of them call it. None for "ddp", which wants nothing.

    Raises:
        ValueError: no such host, or one that needs several nodes with several ranks each.
    """
    world = dist.get_world_size()
    if host not in HOSTS:
        raise ValueError(f"host {host!r}: no such host; there are {', '.join(HOSTS)}.")
    if host in TWO_LEVELS and (nodes < 2 or world % nodes or world // nodes < 2):
        raise ValueError(
            f"host {host!r} needs several nodes of several ranks each, and there are {world} ranks on {nodes}: "
            f"launch/netlab --hosts 2 --ranks-per-host 2 makes some, torchrun --nnodes 2 on two machines as well."
        )
    if host in TWO_LEVELS:
        return init_device_mesh("cpu", (nodes, world // nodes), mesh_dim_names=("replicate", "shard"))
    return init_device_mesh("cpu", (world,)) if host == "fsdp2" else None


def wrap(module: nn.Module, host: str, mesh: DeviceMesh | None, plain: bool) -> nn.Module:
    """The model as its ranks train it. ``plain``: no reducer will be attached, so that HSDP averages between nodes."""
    if host in ("ddp", "hierarchical"):
        return DistributedDataParallel(module)
    from torch.distributed.fsdp import fully_shard  # imported late: older versions of torch, which DDP does with

    assert mesh is not None
    inside = mesh if plain or host == "fsdp2" else mesh["shard"]
    blocks = getattr(module, "blocks", None)
    layers = [layer for layer in module.children() if any(True for _ in layer.parameters())]
    for block in layers[1:-1] if blocks is None else blocks.children():
        fully_shard(block, mesh=inside)
    fully_shard(module, mesh=inside)  # takes the first and the last layer
    return module


def attach(model: nn.Module, host: str, mesh: DeviceMesh | None, reducer: Any, **options: Any) -> Any:
    """`cc.attach`, with what the host asks for."""
    if host == "hsdp":
        options["between"] = "replicate"
    elif host == "hierarchical":
        assert mesh is not None
        # Where a launcher tells nodes apart, as a user would write it; else nodes that one machine only plays.
        apart = os.environ.get("LOCAL_WORLD_SIZE") == str(mesh.size(1))
        options["between"] = "nodes" if apart else mesh.get_group("replicate")
    return cc.attach(model, reducer, **options)


def payload(host: str, mesh: DeviceMesh | None, numel: int, world: int) -> int:
    """Bytes per step with which a rank averages ``numel`` gradients in fp32 where no reducer does: ring collectives.

    Of a sharded model what a reducer would take over: FSDP2's reduce-scatter, HSDP's all-reduce between nodes.
    """
    if host == "hsdp":
        assert mesh is not None
        return 2 * (4 * (numel // mesh.size(1)) * (mesh.size(0) - 1) // mesh.size(0))
    return (1 if host == "fsdp2" else 2) * (4 * numel * (world - 1) // world)
