"""The ranks of a benchmark: started by torchrun or launch/netlab, or alone."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from compcomm.report import network_card


class Ranks(NamedTuple):
    """Who this process is, and on which card its bytes are counted."""

    rank: int
    world: int
    sharing: int
    """Ranks whose bytes the card counts together."""
    interface: str | None

    @property
    def first(self) -> bool:
        return self.rank == 0

    def card_bytes(self) -> float:
        """Bytes that the card has sent so far, per rank that shares it."""
        return network_card.transmitted(self.interface) / self.sharing

    def mean(self, *values: float) -> list[float]:
        """The means of numbers over all ranks."""
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return (total / self.world).tolist()

    def agree(self, value: int) -> int:
        """Rank 0's number."""
        told = torch.tensor(value)
        dist.broadcast(told, 0)
        return int(told)

    def slowest(self, values: list[float]) -> list[float]:
        """Element by element, the largest of all ranks."""
        worst = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(worst, dist.ReduceOp.MAX)
        return worst.tolist()


@contextmanager
def ranks(timeout: float = 600.0) -> Iterator[Ranks]:
    """Joins the process group that the environment describes (Gloo), with one thread per rank.

    Without RANK and WORLD_SIZE the process is alone, which is good for a look at compute times and nothing else.
    """
    torch.set_num_threads(1)
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in alone.items():
        os.environ.setdefault(name, value)
    world, local = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    dist.init_process_group("gloo", timeout=timedelta(seconds=timeout))
    try:
        # Ranks of one host talk over loopback, whatever card has the default route.
        yield Ranks(dist.get_rank(), world, local, "lo" if local == world else None)
        dist.barrier()
    finally:
        dist.destroy_process_group()


def lab() -> dict[str, Any] | None:
    """What launch/netlab says of its links: rate, burst, latency, congestion control; None outside of a lab."""
    note = os.environ.get("NETLAB")
    return json.loads(note) if note else None


def link() -> str:
    """What lies between the ranks, in words."""
    note = lab()
    if note:
        return f"{note['hosts']} hosts, links of {note['rate']}"
    local = os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE")
    return "loopback" if local else "the hosts' own network"
