"""A dry run: the real flow on tensors without content, to learn what it would send."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from ..core.compressor import Compressor
from ..core.context import Arena, Context
from ..core.drive import rehearse
from ..core.layout import Bucket, Layout
from ..core.reducer import Reducer, flow
from ..core.source import Target
from ..core.state import State, Store
from ..routes.choose import settle
from ..routes.within import Within, deal


class Planned(NamedTuple):
    """One collective of a step: what all ranks must agree on, and the bytes that this rank sends."""

    kind: str
    dtype: str
    nbytes: int
    sent: int


def dense_bytes(elements: int, world: int, rows: bool = False) -> int:
    """What a rank sends in an all-reduce of so many fp32 numbers, or in a reduce-scatter to who wants ``rows`` (of so
    many, padding included)."""
    return (1 if rows else 2) * (4 * elements * (world - 1) // world)


@lru_cache(maxsize=1024)
def plan(
    reducer: Reducer,
    layout: Layout,
    world: int,
    rank: int = 0,
    step: int = 1 << 30,
    dtype: torch.dtype = torch.float32,
    rows: bool = False,
) -> tuple[Planned, ...]:
    """The collectives of one bucket in one step, in order. ``rows``: of one that is made of one row per rank."""
    store = Store(reducer, rank, world, "meta", rows=rows)
    ctx = Context(rank, world, step, arena=Arena("meta"), watch=False)
    bucket = Bucket(torch.empty(layout.numel, dtype=dtype, device="meta"), layout)
    target = Target(bucket)
    if rows:
        own = layout.equal_rows(world)[rank]
        target = Target(Bucket(torch.empty(layout.numel, dtype=dtype, device="meta"), own), world, row=True)
    run = flow(reducer, bucket, State(store, layout), ctx, target)
    return tuple(Planned(*op.signature, op.sent_bytes(world, rank)) for op in rehearse(run))


class Cost(NamedTuple):
    """What one step of a reducer sends: ``sent`` and ``dense`` bytes per rank (an all-reduce in fp32, for rows a
    reduce-scatter), and their ratio."""

    sent: int
    dense: int
    collectives: tuple[Planned, ...]

    @property
    def ratio(self) -> float:
        """Dense bytes over sent bytes."""
        return self.dense / self.sent if self.sent else float("inf")


def cost(
    reducer: Reducer | Compressor,
    layout: Layout,
    world: int,
    rank: int = 0,
    *,
    rows: bool = False,
    ranks_per_node: int = 1,
) -> Cost:
    """Exact bytes that ``rank`` sends per step for one bucket, link headers apart; where messages vary in length, the
    most that it may send.

    ``rows``: each rank wants its own row of the mean alone, as under ``fully_shard``. Whole parameters are cut as it
    cuts them (``Layout.sharded``); a layout of pieces is made of ``world`` rows already.

    ``ranks_per_node``: so many of the ``world`` ranks share a node, and the reducer averages between nodes
    (``compcomm.routes.within``). The bytes are those that leave this rank's node, and ``dense`` what leaves it where
    all ranks are one ring.
    """
    if not isinstance(layout, Layout):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"cost({reducer!r}, {type(layout).__name__}, {world!r}): the second argument is a Layout, such as "
            f"cc.Layout.of(model.named_parameters())."
        )
    if isinstance(ranks_per_node, bool) or not isinstance(ranks_per_node, int) or ranks_per_node < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"cost(world={world}, ranks_per_node={ranks_per_node!r}): an integer, 1 or more.")
    if ranks_per_node > 1:
        return _between_nodes(reducer, layout, world, rank, ranks_per_node)
    if rows and all(s.whole for s in layout.segments):
        layout = layout.sharded(world)
    planned = plan(settle(reducer, world, rows=rows), layout, world, rank, rows=rows)
    dense = dense_bytes(layout.numel if rows else sum(s.numel for s in layout.segments), world, rows)
    return Cost(sum(p.sent for p in planned), dense, planned)


def _between_nodes(reducer: Reducer | Compressor, layout: Layout, world: int, rank: int, per: int) -> Cost:
    """Of all ranks of the node that ``rank`` is in."""
    if world % per:
        raise ValueError(f"cost(world={world}, ranks_per_node={per}): nodes have equally many ranks, so it divides.")
    nodes, owners = world // per, deal([(s.name, s.numel) for s in layout.segments], per)
    settled = settle(reducer, nodes)
    planned = [p for i in range(per) for p in plan(settled, Within(i, per, owners).own(layout), nodes, rank // per)]
    return Cost(sum(p.sent for p in planned), dense_bytes(layout.numel, world), tuple(planned))
