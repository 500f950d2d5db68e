"""Sharded models averaged between nodes (HSDP): FSDP exchanges shards inside, exactly; ours go between, in few bytes.

The model is sharded over one dimension of a mesh (``fully_shard(module, mesh=mesh["shard"])``). After each
reduce-scatter FSDP hands a hook (``set_all_reduce_hook``) this rank's shard of the sum: a flat tensor of the unit's
shards, each padded. The hook averages it over the ranks that hold the same shard, so what a reducer sees are whole
parameters of the shard's shape, and its memory is that of a shard: 4 / S bytes per parameter for a residual in fp32.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import partial
from math import prod
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..core.layout import Bucket, Layout, joined
from ..core.reducer import Reducer
from ..core.source import Source, Target
from ..core.transport import Transport
from ..engine.agreement import gather
from ..engine.jobs import Step
from ..engine.local_state import Shard
from ..engine.options import Options
from .fsdp2 import alone, in_no_unit, of_another_size, trained
from .fsdp_internals import Unit, dimensions, replicas
from .joining import connect_ranks
from .sharded_attachment import ShardedAttachment
from .sharded_steps import ShardedSteps


class BetweenAttachment(ShardedAttachment):
    """An attachment that averages shards between nodes.

    ``hold``: while it is True, on every rank, backward passes reduce-scatter inside and nothing goes between: shards'
    gradients add up in ``.grad``. The first pass after that averages their sum, as one step.
    """

    _hold = False

    @property
    def hold(self) -> bool:
        """Whether gradients wait for a later pass to be averaged between nodes."""
        return self._hold

    @hold.setter
    def hold(self, value: bool) -> None:
        if not isinstance(value, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"hold = {value!r}: give True or False, the same on every rank.")
        self._hold = value

    hooks: Sequence[AllReduceHook] = ()

    def end_step(self) -> Step | None:
        """See ``Session.end_step``.

        Raises:
            RuntimeError: also where gradients of held passes were not taken up, since their unit was in no later pass.
        """
        step = super().end_step()
        left = [h for h in self.hooks if h.held]
        for h in left:
            h.held = {}
        if left:
            raise RuntimeError(
                f"hold: {left[0].told} had gradients in a held pass and none in the pass that averages, so they are "
                f"this node's own still. Zero them on every rank (optimizer.zero_grad()), and let every unit be in the "
                f"last pass."
            )
        return step


class AllReduceHook:
    """The hook of one unit. Its mean is FSDP's own: of all nodes where FSDP averages inside, a sum where a user divides
    by a factor of their own (``set_gradient_divide_factor``)."""

    def __init__(
        self, unit: Unit, attachment: BetweenAttachment, steps: ShardedSteps, shard: int, shards: int, world: int
    ) -> None:
        self._unit, self._attachment, self._steps, self._world = unit, attachment, steps, world
        self._shard, self._shards = shard, shards
        self.held: Mapping[str, int] = {}
        """Where its gradients of earlier passes are this node's own: the versions of its shards by then."""
        self.told = f"unit {unit.number} ({unit.names[0]}, ...)"

    def __call__(self, shard: Tensor) -> None:
        """Averages ``shard`` over the nodes, in place."""
        layout = self._unit.layout(self._shards).row(self._shards, self._shard)
        if layout.numel != shard.numel():
            self._steps.fail(self._unit, layout, layout, shard, of_another_size(self._unit, layout, shard.numel()))
            return
        if self._attachment.hold:
            self._attachment.check()
            self._check_untouched()
            self.held = self._versions()
            return
        bucket = Bucket(shard, layout)
        self._check_untouched()
        if self.held:
            self._take_up(bucket)
        scale = 1.0 if self._unit.divisor is None else float(self._world)
        self._steps.average(self._unit, Source(bucket), Target(bucket, scale))

    def _versions(self) -> dict[str, int]:
        return {name: p._version for name, p in zip(self._unit.names, self._unit.parameters, strict=True)}

    def _check_untouched(self) -> None:
        """Whether no optimizer stepped with gradients that are this node's own: its shards differ from the other
        nodes' from then on."""
        if self.held and self.held != self._versions():
            raise RuntimeError(
                f"hold: an optimizer stepped while gradients of {self.told} were held, so the nodes' copies differ "
                f"now. Set hold = False before the backward pass that an optimizer's step follows, and load the last "
                f"checkpoint."
            )

    def _take_up(self, bucket: Bucket) -> None:
        """Adds what earlier passes left in ``.grad``, which FSDP will add the mean to, and clears it there."""
        self.held = {}
        factor = self._unit.post_divisor(bucket.flat.dtype)
        every = {name: p for name, p in zip(self._unit.names, self._unit.parameters, strict=True)}
        held = {s.name: every[s.name] for s in bucket.layout.segments}  # what is frozen now keeps what it had
        for s in bucket.layout.segments:
            gradient: Any = held[s.name].grad
            if gradient is not None:
                local = gradient.to_local().reshape(-1)
                if local.is_cuda:  # FSDP made it on another stream, and it is let go of below
                    local.record_stream(torch.cuda.current_stream(local.device))
                bucket.flat[s.start : s.stop].add_(local.to(bucket.flat), alpha=factor)
        for p in held.values():
            p.grad = None


def open_between(
    model: nn.Module, units: Sequence[Unit], options: Options, timeout: timedelta | None, peers: Peers, trial: Any,
    own: Transport,
) -> BetweenAttachment:  # fmt: skip
    """An attachment that averages the shards of all units over ``peers``. Collective over all ranks of all shards.
    ``own``: between the ranks of this node, and closed here."""
    first, world = units[0], len(peers.ranks)
    shard, shards = own.rank, own.world
    layouts = [u.layout(shards).row(shards, shard) for u in units]
    shapes = {s.name: s.shape for u in units for s in u.layout(shards, everything=True).segments}
    everyone = connect_ranks(_everyone(own, peers.ranks), first.device, timeout)
    own.close()
    try:
        attachment = BetweenAttachment(
            connect_ranks(peers.ranks, first.device, timeout, peers.like), options, trained(units),
            trial=partial(_trial, trial, layouts), layouts=[x for x in layouts if x.segments],
            facts={"units": [u.names for u in units], "shards": shards},
            shard=Shard(everyone, shard, shards, shapes),
        )  # fmt: skip
    except Exception:
        everyone.close()
        raise
    steps = ShardedSteps(attachment, model, units, lambda u: u.layout(shards).row(shards, shard))
    attachment.hooks = [AllReduceHook(u, attachment, steps, shard, shards, world) for u in units]
    for u, hook in zip(units, attachment.hooks, strict=True):
        u.hook = hook

    def on_detach() -> None:
        steps.detach()
        for u in units:
            u.hook = None
        everyone.close()

    attachment.on_detach = on_detach
    attachment.setup.unaveraged = partial(alone, model, units)
    attachment.setup.replicas = partial(in_no_unit, model, units)
    attachment.setup.shards = lambda: (shard, held_shards(units))
    return attachment


def _trial(trial: Any, layouts: Sequence[Layout], reducer: Reducer, everything: Layout) -> None:
    trial(reducer, joined(layouts).packed())


def _everyone(own: Transport, peers: list[int]) -> list[int]:
    """The ranks of all shards and all nodes. Collective over the ranks of this node, ``own``."""
    every: list[list[int]] = [json.loads(text) for text in gather(own, json.dumps(peers).encode(), "attach")]
    found = sorted(rank for ranks in every for rank in ranks)
    assert len(set(found)) == len(found) == prod((len(every), len(peers))), (every, torch.__version__)
    return found


def held_shards(units: Sequence[Unit]) -> list[tuple[str, Tensor]]:
    """What this rank holds of every parameter."""
    held: Any = [(name, p) for u in units for name, p in zip(u.names, u.parameters, strict=True)]
    return [(name, p.detach().to_local()) for name, p in held]


def shard_groups(unit: Unit, everyone: Transport) -> list[list[int]]:
    """The ranks among which shards of a unit lie, as each rank has them. Collective over ``everyone``."""
    mine = json.dumps(dist.get_process_group_ranks(unit.group)).encode()
    return [json.loads(text) for text in gather(everyone, mine, "attach")]


class Peers(NamedTuple):
    """The ranks that hold the same shard, and a group whose backend carries what goes between them."""

    ranks: list[int]
    like: dist.ProcessGroup | None = None


def same_shard(unit: Unit, between: object, groups: list[list[int]]) -> Peers:
    """The ranks that hold the same shard of a unit, of which this is one. ``groups``: ``shard_groups``.

    Raises:
        TypeError, ValueError: ``between`` names none.
    """
    if isinstance(between, dist.ProcessGroup):
        return Peers(dist.get_process_group_ranks(between), between)
    if not isinstance(between, str):
        raise TypeError(
            f"attach(between={between!r}): give the name of a dimension of the mesh, such as 'replicate', 'nodes', or "
            f"the process group of the ranks that hold the same shard."
        )
    if between != "nodes" or between in dimensions(unit):
        group = replicas(unit, between)
        return Peers(dist.get_process_group_ranks(group), group)
    nodes = sorted({tuple(ranks) for ranks in groups})
    if len(nodes) == 1 or len({len(ranks) for ranks in nodes}) > 1:
        sizes = ", ".join(str(len(ranks)) for ranks in nodes)
        why = "all ranks share one model" if len(nodes) == 1 else f"groups of {sizes} ranks share a model"
        raise ValueError(
            f"attach(between='nodes'): {why}, so no rank of another node holds the same shard. Shard inside nodes: "
            f"mesh = init_device_mesh(device, (nodes, ranks), mesh_dim_names=('replicate', 'shard')); "
            f"fully_shard(module, mesh=mesh['shard'])."
        )
    place = dist.get_process_group_ranks(unit.group).index(dist.get_rank())
    return Peers([ranks[place] for ranks in nodes])


def check_between(units: Sequence[Unit], between: object, weights: object, groups: list[list[int]]) -> Peers:
    """The ranks over which shards are averaged, where the units can be averaged so.

    Raises:
        TypeError, ValueError: why not.
    """
    if weights is not None:
        raise ValueError(
            f"attach(between={between!r}, weights={weights!r}): weights are gathered inside a node. Leave one of the "
            f"two out."
        )
    for u in units:
        where = f"unit {u.number} ({u.names[0]}, ...)"
        if u.hook is not None:
            ours = isinstance(u.hook, AllReduceHook)
            raise ValueError(
                f"attach(between={between!r}): {where} has {'a compcomm reducer' if ours else 'an all-reduce hook'} "
                f"already. {'Call detach() of the first attachment' if ours else 'Leave set_all_reduce_hook out'}."
            )
    peers = same_shard(units[0], between, groups)
    inside = dist.get_process_group_ranks(units[0].group)
    common = set(inside) & set(peers.ranks)
    places = {rank: groups[rank].index(rank) for rank in peers.ranks}
    if len(set(places.values())) > 1:
        told = ", ".join(f"rank {rank} holds shard {place}" for rank, place in places.items())
        raise ValueError(
            f"attach(between={between!r}): {told}. Give the group of the ranks that hold the same shard, one of each "
            f"node."
        )
    if len(common) != 1:
        raise ValueError(
            f"attach(between={between!r}): this rank's shard group is {inside}, and ranks {sorted(common)} of it are "
            f"averaged with each other. Give the group of the ranks that hold the same shard, one of each node."
        )
    return peers
