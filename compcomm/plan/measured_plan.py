"""A plan measured by the ranks that will train: their link, their kernels at the same time, their number."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from statistics import median
from time import perf_counter

import torch
import torch.distributed as dist

from ..core.collectives import AllReduceMax
from ..core.compressor import Compressor
from ..core.transport import Transport
from ..hosts.nodes import two_levels
from ..transports import nodes as transports
from ..transports.process_group import ProcessGroup
from . import units
from .buckets import cut
from .hosts import DDP, Host, Nodes
from .kernels import Kernels, calibrate
from .measure import measure
from .methods import Method
from .models import Model
from .planner import made
from .result import Plan
from .sharded_hosts import HSDP, FullyShard


def measured(
    model: Model,
    more: Sequence[Method],
    compute: str | float | None,
    transport: Transport,
    host: str = "ddp",
    weights: Compressor | None = None,
) -> Plan:
    """A plan for the ranks of ``transport``. Collective: every rank calls it with the same arguments. Where these are
    nodes, their ranks measure side by side: what one gets of its node's link is its share. ``more``: methods beside
    those that plans for this host compare. ``host`` and ``weights``: as the command has them.

    ``compute``: None, to run the module's own forward and backward pass; the slowest rank's counts.

    Raises:
        ValueError: ``compute`` is None and the model is only shapes, or its forward pass cannot be called alone; a
            ``host`` that needs nodes, where there are none.
    """
    took = torch.tensor([_computation(model) if compute is None else units.seconds(compute)], dtype=torch.float64)
    transport.start(AllReduceMax(took)).wait()
    buckets, workers = cut(model.shapes), ranks_of(transport)
    holds = _host(host, weights, transport)
    link = measure(transport, holds.rows)
    kernels: dict[str, Kernels] = {}
    chosen = (*holds.methods(), *more)
    for m in chosen:
        reducer = holds.resolved(m, workers)
        kernels[m.text] = calibrate(reducer, holds.seen(buckets), transport.world, transport, link, holds.rows)
    whole = link.at(link.bandwidth * workers / transport.world)
    return made(model, buckets, workers, whole, float(took), chosen, kernels, host=holds)


def _host(name: str, weights: Compressor | None, transport: Transport) -> Host:
    """What averages over the ranks that run, which measure the link inside their node. Collective."""
    if name == "fsdp2":
        return FullyShard.of(weights, transport.world)
    if not isinstance(transport, transports.Nodes):
        if name == "hsdp":
            raise ValueError("--host hsdp: start two nodes or more of several ranks each, or leave out --measure.")
        return DDP()
    per = transport.inside.world
    if name == "hsdp":
        return HSDP(per, measure(transport.inside, rows=True))
    return Nodes.of(per, measure(transport.inside))


def ranks_of(transport: Transport) -> int:
    """How many there are, those of all nodes."""
    return transport.world * (transport.inside.world if isinstance(transport, transports.Nodes) else 1)


@contextmanager
def joined(nodes: bool = False) -> Generator[Transport]:
    """The ranks that torchrun started, on Gloo, with a transport of ours between them; ``nodes``: between nodes.

    Raises:
        ValueError: this process was not started by torchrun.
    """
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        raise ValueError("--measure: start two or more ranks: torchrun --nproc-per-node 2 -m compcomm plan --measure.")
    dist.init_process_group("gloo")
    transport: Transport = ProcessGroup(dist.group.WORLD)
    if nodes:
        transport.close()
        transport = two_levels("nodes", None, transport.device, None, ()).transport
    try:
        yield transport
        dist.barrier()
    finally:
        transport.close()
        dist.destroy_process_group()


def _computation(model: Model) -> float:
    """The median of three forward and backward passes, after one: the module is called with ``example()``."""
    if model.make is None:
        raise ValueError(
            f"plan: how long does {model.name!r} compute? It is shapes alone: give --compute (0.2, 200ms)."
        )
    module = model.make()
    inputs = getattr(module, "example", None)
    if not callable(inputs):
        raise ValueError(
            f"plan: {type(module).__name__} cannot be run without inputs. Give it example(), which returns a tuple of "
            f"them, or give --compute (0.2, 200ms)."
        )
    spent: list[float] = []
    for _ in range(4):
        given: tuple[object, ...] = tuple(inputs())  # type: ignore[arg-type]
        since = perf_counter()
        _scalar(module(*given)).backward()
        spent.append(perf_counter() - since)
        module.zero_grad()
    return median(spent[1:])


def _scalar(result: object) -> torch.Tensor:
    """What a backward pass may begin with."""
    if not isinstance(result, torch.Tensor):
        raise ValueError("plan: the module's forward pass gives no tensor: give --compute (0.2, 200ms).")
    return result if result.ndim == 0 else result.float().sum()
