"""Seconds that planned collectives take on a link. The bytes are those of the reducer's own dry run."""

from __future__ import annotations

from functools import lru_cache
from math import ceil, log2

import torch

from ..core.layout import Layout
from ..core.reducer import Reducer
from ..transports.dry_run import Planned, plan
from .link import Link

EXACT = 256
"""Workers up to which a dry run lists the bytes. Where ranks own shares it packs a message for each of them: time and
memory grow with their number."""


def collectives(
    reducer: Reducer | None, layout: Layout, world: int, dtype: torch.dtype = torch.float32, rows: bool = False
) -> tuple[Planned, ...]:
    """What rank 0 of ``world`` sends for one bucket of gradients in ``dtype``. None is DDP without a hook: one
    all-reduce in that type. ``rows``: the bucket is made of one row per rank, which it wants alone, and None is
    ``fully_shard`` as it is: one reduce-scatter, padding included.

    Up to 256 workers as the dry run counts it. Beyond, the length of every buffer goes on along the line through 128
    and 256: exact for what sums and for an all-gather of selections; where ranks own shares the line stands for what
    headers and smallest shares add, and counts too little where shares fall below a block (ResNet-50, 4 bits: 10 % at
    1024 workers, 15 % at 2048).

    Raises:
        ValueError: rows of more than 256 workers under a reducer.
    """
    if reducer is None and rows:
        nbytes = dtype.itemsize * layout.numel
        return (Planned("ReduceScatter", str(dtype)[6:], nbytes, nbytes * (world - 1) // world),)
    if reducer is None:
        nbytes = dtype.itemsize * sum(s.numel for s in layout.segments)
        return (Planned("AllReduce", str(dtype)[6:], nbytes, 2 * (nbytes * (world - 1) // world)),)
    if world <= EXACT:
        return plan(reducer, layout, world, dtype=dtype, rows=rows)
    if rows:
        raise ValueError(f"collectives(world={world}, rows=True): a row's messages are counted up to {EXACT} workers.")
    near, far = (plan(reducer, layout, w, dtype=dtype) for w in (EXACT // 2, EXACT))
    past = (world - EXACT) / (EXACT - EXACT // 2)
    lengths = (round(b.nbytes + (b.nbytes - a.nbytes) * past) for a, b in zip(near, far, strict=True))
    return tuple(Planned(p.kind, p.dtype, n, _sent(p.kind, n, world)) for p, n in zip(far, lengths, strict=True))


def _sent(kind: str, nbytes: int, world: int) -> int:
    """What a rank sends, on average, of a buffer of that length."""
    if kind == "Broadcast":
        return nbytes * (world - 1)
    return (2 if kind.startswith("AllReduce") else 1) * (nbytes * (world - 1) // world)


def seconds(planned: Planned, world: int, link: Link) -> float:
    """Seconds of one collective between ``world`` ranks: rounds * latency + 8 * bytes / bandwidth.

    ============================== ======================= ===================================
    kind                           rounds                  bytes that a rank sends
    ============================== ======================= ===================================
    all-reduce (ring)              2 (W-1)                 2 (W-1)/W of the buffer
    all-gather, all-to-all         W-1                     (W-1) messages, as the dry run
                                                           counts them
    reduce-scatter (ring)          W-1                     (W-1)/W of the buffer
    broadcast (binomial tree)      ceil(log2 W)            the buffer, in every round
    ============================== ======================= ===================================

    Source: Thakur, Rabenseifner, Gropp 2005 ("Optimization of Collective Communication Operations in MPICH").
    """
    rounds, sent = steps(planned, world)
    speed = link.speed(planned.kind)
    return rounds * speed.latency + 8 * sent / speed.bandwidth


def steps(planned: Planned, world: int) -> tuple[int, int]:
    """Rounds of one collective, and the bytes that a rank sends in all of them."""
    if world == 1:
        return 0, 0
    if planned.kind in ("AllReduce", "AllReduceMax"):
        return 2 * (world - 1), planned.sent
    if planned.kind == "Broadcast":
        depth = ceil(log2(world))
        return depth, depth * planned.nbytes
    return world - 1, planned.sent


@lru_cache(maxsize=1024)
def traffic(
    reducer: Reducer | None,
    layouts: tuple[Layout, ...],
    world: int,
    dtype: torch.dtype = torch.float32,
    rows: bool = False,
) -> tuple[tuple[Planned, ...], ...]:
    """``collectives`` of every bucket."""
    return tuple(collectives(reducer, layout, world, dtype, rows) for layout in layouts)


def exchange(reducer: Reducer | None, layouts: tuple[Layout, ...], world: int, link: Link) -> float:
    """Seconds that all collectives of a step take one after the other, nothing else counted."""
    return sum(seconds(p, world, link) for bucket in traffic(reducer, layouts, world) for p in bucket)
