"""Which ranks share a node, and the transports that follow from it."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from ..core.compressor import Compressor
from ..core.transport import Transport
from ..engine.agreement import agree, gather
from ..engine.local_state import Shard
from ..routes.within import Within, deal
from ..routes.within import check_inside as check_codec
from ..transports.nodes import Nodes
from .joining import connect, connect_ranks
from .names import DDP


@dataclass(frozen=True)
class Topology:
    """``nodes``: the global ranks of each, equally many. This rank is number ``local`` of node ``node``."""

    nodes: tuple[tuple[int, ...], ...]
    node: int
    local: int

    @property
    def peers(self) -> list[int]:
        """The ranks of all nodes that are as this one in theirs."""
        return [ranks[self.local] for ranks in self.nodes]


def topology(between: object, everyone: Transport, ranks: list[int]) -> Topology | str:
    """The nodes of ``ranks``, or why there is nothing to be gained from them. Collective over ``everyone``, a transport
    between them.

    ``between``: "nodes", as the launcher says it (``_node``); or the process group of the ranks that are as this one in
    theirs, one of each node.

    Raises:
        ValueError: on every rank, where the groups given are not one of each node.
    """
    rank = ranks[everyone.rank]
    if isinstance(between, dist.ProcessGroup):
        mine: Any = sorted(dist.get_process_group_ranks(between))
    else:
        mine = _node(os.environ)
    said = [json.loads(text) for text in gather(everyone, json.dumps(mine).encode(), "attach")]
    nodes: dict[object, list[int]] = {}
    for other, one in zip(ranks, said, strict=True):
        if isinstance(one, str):
            nodes.setdefault(one, []).append(other)
            continue
        if other not in one or any(said[ranks.index(r)] != one for r in one if r in ranks):
            raise ValueError(
                f"attach(between=...): rank {other} gave a group of ranks {one}, and these gave other ones. A group "
                f"has one rank of each node, and all of them give it."
            )
        nodes.setdefault(one.index(other), []).append(other)
    sizes = [len(found) for found in nodes.values()]
    if len(sizes) == 1 or max(sizes) == 1:
        return "there is one node" if len(sizes) == 1 else "every node has one rank"
    if len(set(sizes)) > 1:
        return f"nodes have {', '.join(map(str, sizes))} ranks"
    found = tuple(tuple(sorted(ranks)) for ranks in nodes.values())
    node = next(i for i, members in enumerate(found) if rank in members)
    return Topology(found, node, found[node].index(rank))


def _node(said: Mapping[str, str]) -> str:
    """What the ranks of one node have in common: GROUP_RANK (torchrun); else so many ranks in a row as LOCAL_WORLD_SIZE
    says, where RANK and LOCAL_RANK agree with it; else the host's name."""
    if said.get("GROUP_RANK"):
        return f"group {said['GROUP_RANK']}"
    try:
        size, rank, local = (int(said[n]) for n in ("LOCAL_WORLD_SIZE", "RANK", "LOCAL_RANK"))
        if rank % size == local:
            return f"ranks {rank - local} to {rank - local + size - 1}"
    except (KeyError, ValueError, ZeroDivisionError):
        pass
    return f"host {socket.gethostname()}"


class Levels(NamedTuple):
    """What a session is made of, over nodes and within them; flat, where ``topology`` is None."""

    transport: Transport
    topology: Topology | None = None
    within: Within | None = None
    shard: Shard | None = None


def two_levels(
    between: str | dist.ProcessGroup | None,
    group: dist.ProcessGroup | None,
    device: torch.device,
    timeout: timedelta | None,
    named: Sequence[tuple[str, Tensor]],
    codec: Compressor | None = None,
) -> Levels:
    """For the ranks of ``group``, which average ``named`` parameters. Collective over the group. Flat without
    ``between``, and (said in a line) where two levels gain nothing. ``codec``: what codes gradients inside a node."""
    everyone = connect(group, device, timeout)
    try:  # what each says of nodes comes first: what else ranks ask each other depends on it
        agree(everyone, {"between": told(between), "inside": repr(codec)}, None, host=DDP)
        return _levels(between, group, everyone, device, timeout, named, codec)
    except Exception:
        everyone.close()
        raise


def told(between: object) -> str:
    """``between``, as ranks compare it."""
    return repr(between) if between is None or isinstance(between, str) else "a process group"


def _levels(
    between: str | dist.ProcessGroup | None,
    group: dist.ProcessGroup | None,
    everyone: Transport,
    device: torch.device,
    timeout: timedelta | None,
    named: Sequence[tuple[str, Tensor]],
    codec: Compressor | None,
) -> Levels:
    if between is None:
        return Levels(everyone)
    ranks = dist.get_process_group_ranks(group if group is not None else dist.group.WORLD)
    found = topology(between, everyone, ranks)
    if isinstance(found, str):
        if everyone.rank == 0:
            print(f"compcomm: {found}, so all ranks average as one", file=sys.stderr, flush=True)
        return Levels(everyone)
    between_nodes = connect_ranks(found.peers, device, timeout, like=group if isinstance(between, str) else between)
    inside = connect_ranks(found.nodes[found.node], device, timeout, like=group)
    within = Within(found.local, inside.world, deal(((n, p.numel()) for n, p in named), inside.world), codec)
    shard = Shard(everyone, found.local, inside.world, {n: tuple(p.shape) for n, p in named})
    return Levels(Nodes(between_nodes, inside), found, within, shard)


def group_between(between: object) -> Any:
    """A dimension of a mesh as its process group; anything else as it is.

    Raises:
        ValueError: a mesh of several dimensions.
    """
    if not isinstance(between, DeviceMesh):
        return between
    if between.ndim != 1:
        names = between.mesh_dim_names
        which = f"mesh[{names[0]!r}]" if names else "a mesh of one dimension"
        raise ValueError(
            f"attach(between={between!r}): this mesh has {between.ndim} dimensions. Give the one between nodes, as in "
            f"{which}."
        )
    return between.get_group()


def check_inside(compressor: object, between: object) -> None:
    """Whether it may code gradients inside a node.

    Raises:
        TypeError: no compressor.
        ValueError: it sends a part of the elements alone; or there is no inside.
    """
    if compressor is None:
        return
    call = f"attach(inside={compressor!r})"
    if not isinstance(compressor, Compressor):
        raise TypeError(f"{call}: give a compressor, such as QSGD(bits=8, rounding='nearest'), or None: exact.")
    if between is None:
        raise ValueError(f"{call}: without between= all ranks average as one. Give between='nodes', or leave it out.")
    check_codec(call, compressor)


def check_between(between: object) -> None:
    """Whether it says where nodes begin, of a DistributedDataParallel model.

    Raises:
        ValueError: it does not.
    """
    if between is not None and between != "nodes" and not isinstance(between, dist.ProcessGroup):
        raise ValueError(
            f"attach(between={between!r}): of a DistributedDataParallel model it is 'nodes', or the process group (or "
            f"the dimension of a DeviceMesh) of the ranks that are as this one in their nodes."
        )
