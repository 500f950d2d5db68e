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
from ..core.state import State, Store
from ..routes.choose import settle


class Planned(NamedTuple):
    """One collective of a step: what all ranks must agree on, and the bytes that this rank sends."""

    kind: str
    dtype: str
    nbytes: int
    sent: int


@lru_cache(maxsize=1024)
def plan(
    reducer: Reducer, layout: Layout, world: int, rank: int = 0, step: int = 1 << 30, dtype: torch.dtype = torch.float32
) -> tuple[Planned, ...]:
    """The collectives of one bucket in one step, in order."""
    store = Store(reducer, rank, world, "meta")
    ctx = Context(rank, world, step, arena=Arena("meta"), watch=False)
    run = flow(
        reducer, Bucket(torch.empty(layout.numel, dtype=dtype, device="meta"), layout), State(store, layout), ctx
    )
    return tuple(Planned(*op.signature, op.sent_bytes(world, rank)) for op in rehearse(run))


class Cost(NamedTuple):
    """What one step of a reducer sends: ``sent`` and ``dense`` bytes per rank (fp32 all-reduce), and their ratio."""

    sent: int
    dense: int
    collectives: tuple[Planned, ...]

    @property
    def ratio(self) -> float:
        """Dense bytes over sent bytes."""
        return self.dense / self.sent if self.sent else float("inf")


def cost(reducer: Reducer | Compressor, layout: Layout, world: int, rank: int = 0) -> Cost:
    """Exact bytes that ``rank`` sends per step for one bucket, link headers apart; where messages vary in length, the
    most that it may send."""
    if not isinstance(layout, Layout):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"cost({reducer!r}, {type(layout).__name__}, {world!r}): the second argument is a Layout, such as "
            f"cc.Layout.of(model.named_parameters())."
        )
    planned = plan(settle(reducer, world), layout, world, rank)
    dense = 2 * (4 * sum(s.numel for s in layout.segments) * (world - 1) // world)
    return Cost(sum(p.sent for p in planned), dense, planned)
