"""The names that differ between the versions of torch that we support (2.8 and later), and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# Deprecated in 2.13 under their old names; the old ones alone exist before.
_dist: Any = dist
_gather: Any = getattr(dist, "all_gather_single", None) or _dist.all_gather_into_tensor
_scatter: Any = getattr(dist, "reduce_scatter_single", None) or _dist.reduce_scatter_tensor


def all_gather(recv: Tensor, send: Tensor, group: dist.ProcessGroup) -> Any:
    """``recv`` (W times as long) becomes every rank's ``send``; returns the asynchronous work."""
    return _gather(recv, send, group=group, async_op=True)


def reduce_scatter(recv: Tensor, send: Tensor, group: dist.ProcessGroup) -> Any:
    """``recv`` becomes this rank's part of the sum of ``send``; returns the asynchronous work."""
    return _scatter(recv, send, group=group, async_op=True)


def backend(group: dist.ProcessGroup | None, device: torch.device) -> str:
    """The backend that serves ``device`` in a group: "gloo", "nccl", ..."""
    entries = (entry.split(":") for entry in str(_dist.get_backend_config(group)).split(","))
    return {entry[0]: entry[-1] for entry in entries}.get(device.type, dist.get_backend(group))


def alive(group: dist.ProcessGroup) -> bool:
    """Whether nobody has destroyed a group."""
    try:
        return bool(dist.get_process_group_ranks(group))
    except (KeyError, ValueError):
        return False


def new_group(group: dist.ProcessGroup | None, timeout: timedelta | None, device: torch.device) -> dist.ProcessGroup:
    """A group of our own over the ranks of ``group`` (None: all). Every one of these ranks must call it."""
    ranks = dist.get_process_group_ranks(group if group is not None else dist.group.WORLD)
    return group_of(ranks, timeout, backend(group, device))


def group_of(ranks: Sequence[int], timeout: timedelta | None, kind: str) -> dist.ProcessGroup:
    """A group over some of all ranks, each of which calls it; the others do not."""
    made: Any = dist.new_group(list(ranks), timeout=timeout, backend=kind, use_local_synchronization=True)
    return made
