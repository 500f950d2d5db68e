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
from ..core.transport import Transport
from ..transports.process_group import ProcessGroup
from . import units
from .buckets import cut
from .kernels import Kernels, calibrate
from .measure import measure
from .methods import Method
from .models import Model
from .planner import made
from .result import Plan


def measured(model: Model, methods: Sequence[Method], compute: str | float | None, transport: Transport) -> Plan:
    """A plan for the ranks of ``transport``. Collective: every rank calls it with the same arguments.

    ``compute``: None, to run the module's own forward and backward pass; the slowest rank's counts.

    Raises:
        ValueError: ``compute`` is None and the model is only shapes, or its forward pass cannot be called alone.
    """
    took = torch.tensor([_computation(model) if compute is None else units.seconds(compute)], dtype=torch.float64)
    transport.start(AllReduceMax(took)).wait()
    link, buckets = measure(transport), cut(model.shapes)
    kernels: dict[str, Kernels] = {}
    for m in methods:
        kernels[m.text] = calibrate(m.resolved(transport.world), buckets, transport.world, transport, link)
    return made(model, buckets, transport.world, link, float(took), methods, kernels)


@contextmanager
def joined() -> Generator[ProcessGroup]:
    """The ranks that torchrun started, on Gloo, with a transport of ours between them.

    Raises:
        ValueError: this process was not started by torchrun.
    """
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        raise ValueError("--measure: start two or more ranks: torchrun --nproc-per-node 2 -m compcomm plan --measure.")
    dist.init_process_group("gloo")
    transport = ProcessGroup(dist.group.WORLD)
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
