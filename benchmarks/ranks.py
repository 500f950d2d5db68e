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
    local: int
    """Ranks of one host: the card counts their bytes together."""
    interface: str | None

    @property
    def first(self) -> bool:
        return self.rank == 0

    def card_bytes(self) -> float:
        """Bytes that this host's card has sent so far; where all ranks are on one host, their mean on its loopback.

        What ranks of one host send each other does not pass the card, so a rank's part of the host's bytes would say
        little; the host's are what its link carries, and the mean over ranks is the mean over hosts. Ranks that share
        a card read it together, so all ranks call this.
        """
        shared = 1 < self.local < self.world
        if shared:
            dist.barrier()  # until then another rank of this host may still send
        sent = network_card.transmitted(self.interface)
        if shared:
            dist.barrier()  # until then another rank of this host may not have read
        return sent / (self.local if self.local == self.world else 1)

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
    """What launch/netlab says of its hosts and links: ranks per host, rate, burst, latency, congestion control.

    None outside of a lab, and in a lab of one host, where nothing takes a link.
    """
    note = json.loads(os.environ.get("NETLAB", "null"))
    return note if note and note["hosts"] > 1 else None


def link() -> str:
    """What lies between the ranks, in words."""
    note = lab()
    if note:
        ranks = "" if note["ranks_per_host"] == 1 else f" of {note['ranks_per_host']} ranks"
        return f"{note['hosts']} hosts{ranks}, links of {note['rate']}"
    local = os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE")
    return "loopback" if local else "the hosts' own network"


def counted_per() -> str:
    """Whose bytes `Ranks.card_bytes` are, in words."""
    local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    return f"per host of {local} workers" if 1 < local < world else "per worker"
