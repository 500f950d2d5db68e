"""One small model, with any reducer, on every host that averages it: DDP, DDP between nodes, the rows of FSDP2, HSDP
between nodes; on four ranks, which are two nodes.

Its gradients are what it is given, so what is due is known to the last digit, and no second model has to be run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

import compcomm as cc
from compcomm.core.state import State
from compcomm.core.structure import current
from compcomm.testing.conservation import keeps_everything
from compcomm.testing.inputs import MODEL
from compcomm.transports.dry_run import plan
from tests.patience import patience

from . import models
from .sharded import fully_shard

Named = dict[str, Tensor]
SHAPES: dict[str, tuple[int, ...]] = {name: shape or (1,) for name, shape in MODEL}
"""The contract's model, for whose names its cases are made: uneven, and without a scalar, which fully_shard refuses."""
UNITS = [[n for n in SHAPES if "." in n], [n for n in SHAPES if "." not in n]]
HOSTS = {"DDP": 4, "DDP between nodes": 2, "FSDP2": 4, "HSDP": 2}
"""And between how many a reducer works there."""


@contextmanager
def nodes_of(*sizes: int) -> Iterator[None]:
    """As a launcher says which ranks share a node."""
    node = next(i for i in range(len(sizes)) if dist.get_rank() < sum(sizes[: i + 1]))
    os.environ["GROUP_RANK"] = str(node)
    try:
        yield
    finally:
        del os.environ["GROUP_RANK"]


class Given(nn.Module):
    """Parameters whose gradients are what ``forward`` is given."""

    def __init__(self, names: Sequence[str], prefix: str = "") -> None:
        super().__init__()
        self.prefix = prefix
        for name in names:
            shape = SHAPES[prefix + name]
            made = torch.linspace(-0.5, 0.5, torch.Size(shape).numel()).view(shape)
            self.register_parameter(name, nn.Parameter(made))

    def forward(self, gradients: Named) -> Tensor:
        own = self.named_parameters(recurse=False)
        return torch.stack([(p * gradients[self.prefix + n]).sum() for n, p in own]).sum()


class Net(Given):
    """All of them; those of "layer" are in a module of their own."""

    def __init__(self) -> None:
        super().__init__(UNITS[1])
        self.layer = Given([n.removeprefix("layer.") for n in UNITS[0]], "layer.")

    def forward(self, gradients: Named) -> Tensor:
        return super().forward(gradients) + self.layer(gradients)


def gradients(rank: int, step: int) -> Named:
    """A rank's gradients: a part is equal on all ranks, another in all steps."""
    seeds = (step, 7919 * (rank + 1) + step, 999)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return {n: sum((torch.randn(s, generator=g) for g in generators), torch.zeros(s)) for n, s in SHAPES.items()}


def mean_gradients(world: int, step: int) -> Named:
    """In double precision."""
    every = [gradients(rank, step) for rank in range(world)]
    return {n: torch.stack([g[n].double() for g in every]).mean(0) for n in SHAPES}


class Hosted:
    """The model on a host, with a reducer and plain SGD. ``applied``: the sum of all means, of this rank's shards."""

    def __init__(self, wrap: Callable[[nn.Module], Any], options: Mapping[str, Any], reducer: Any) -> None:
        self.model = wrap(Net())
        self.sgd = torch.optim.SGD(self.model.parameters(), lr=0.1)
        made = cc.parse(reducer) if isinstance(reducer, str) else reducer
        self.applied: Named = {}
        options = {"timeout": patience(20), "optimizer": self.sgd, "seed": 5, **options}
        with nodes_of(2, 2):
            self.hook: Any = cc.attach(self.model, made, **options)

    @property
    def sharded(self) -> bool:
        return not hasattr(self.model, "module")

    @property
    def parameters(self) -> dict[str, Any]:
        return {n.removeprefix("module."): p for n, p in self.model.named_parameters()}

    def step(self, number: int) -> Named:
        """A step; this rank's shards of the means."""
        self.model(gradients(dist.get_rank(), number)).backward()
        self.sgd.step()
        means = {n: _local(p.grad).clone() for n, p in self.parameters.items()}
        self.sgd.zero_grad()
        for n, mean in means.items():
            self.applied[n] = self.applied[n].add_(mean) if n in self.applied else mean.double()
        return means

    def weights(self) -> Named:
        """All parameters. Collective."""
        found: Named = {}
        for unit in (self.model.layer, self.model) if self.sharded else ():
            unit.unshard()
            found |= {n: p.detach().clone() for n, p in self.parameters.items() if not hasattr(p, "to_local")}
            unit.reshard()
        assert not self.sharded or found.keys() == SHAPES.keys()
        return found or {n: p.detach() for n, p in self.parameters.items()}

    @torch.no_grad()
    def take(self, other: Hosted) -> None:
        """Another one's parameters."""
        for n, p in self.parameters.items():
            p.copy_(other.parameters[n])

    @property
    def layouts(self) -> list[cc.Layout]:
        """What this rank's buckets are to a reducer, as its user would lay them out; DDP alone tells how it cut."""
        hook, rank = self.hook, dist.get_rank()
        if hook.setup.rows:
            return [_of(unit).sharded(4) for unit in UNITS]
        if self.sharded:
            return [_of(unit).sharded(2).row(2, rank % 2) for unit in UNITS]
        within = hook.steps.scheduler.within
        owned = [n for n in SHAPES if within is None or within.owners[n] == within.rank]
        buckets = ([s.name for s in flow.layout.segments] for flow in hook.steps.scheduler.last)
        return [_of(n for n in bucket if n in owned) for bucket in buckets]

    def due_bytes(self, step: int) -> int:
        """What a dry run says that this rank sends in a step, with the settings that controllers have chosen by now."""
        setup, wire = self.hook.setup, self.hook.transport
        found = 0
        for layout in self.layouts:
            now = current(setup.reducer, State(setup.store, layout))
            found += sum(p.sent for p in plan(now, layout, wire.world, wire.rank, step, rows=setup.rows))
        return found

    def forgetful(self) -> set[str]:
        """The parameters of which something may be lost for good, as far as this rank has a part of them."""
        reducer, world = self.hook.reducer, self.hook.transport.world
        parts = (s for layout in self.layouts for s in layout.segments)
        return {s.name for s in parts if not keeps_everything(reducer, world, s)}


def _of(names: Any) -> cc.Layout:
    return cc.Layout.of((n, SHAPES[n]) for n in names)


def _local(t: Any) -> Tensor:
    return t.to_local() if hasattr(t, "to_local") else t


def sharded(module: nn.Module, whole: bool = False, mesh: Any = None) -> nn.Module:
    """``fully_shard``: "layer" a unit and the rest one; ``whole``: all as one."""
    for part in (module,) if whole else (*module.children(), module):
        fully_shard(part, mesh=mesh)
    return module


def host(name: str, whole: bool = False, **options: Any) -> Callable[[Any], Hosted]:
    """What puts the model with a reducer on the host of that name; ``whole``: as one bucket or unit. ``options``: more
    of ``attach``. Collective."""
    if name == "FSDP2":
        return lambda reducer: Hosted(lambda net: sharded(net, whole), options, reducer)
    if name == "HSDP":
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))["shard"]
        options["between"] = "replicate"
        return lambda reducer: Hosted(lambda net: sharded(net, whole, mesh), options, reducer)
    options |= {"between": "nodes"} if "nodes" in name else {}
    megabytes = 25 if whole else 0.004
    return lambda reducer: Hosted(lambda net: models.wrap(net, megabytes=megabytes)[0], options, reducer)


def joined(name: str, shards: Sequence[Named]) -> Named:
    """All of each parameter: what one rank has, or those of the first node, or all of them."""
    if name.startswith("DDP"):
        return shards[0]
    return {n: torch.cat([one[n] for one in (shards[:2] if name == "HSDP" else shards)]) for n in SHAPES}


def gaps(
    name: str, applied: Sequence[Named], steps: Sequence[int], residual: Named, lost: Container[str] = ()
) -> dict[str, float]:
    """|due - applied - remembered| / |due|, by parameter. ``residual``: merged. ``lost``: where nobody claims it."""
    total, found = joined(name, applied), dict[str, float]()
    dues = [mean_gradients(len(applied), step) for step in steps]
    for n in (n for n in SHAPES if n not in lost):
        due = torch.stack([one[n] for one in dues]).sum(0)
        found[n] = float((due - total[n] - residual.get(n, torch.zeros(()))).norm() / due.norm())
    return found
