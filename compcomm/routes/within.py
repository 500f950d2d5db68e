"""Within: exact inside a node, a reducer between nodes. The hierarchical all-reduce, for whole buckets.

Three rounds. Inside a node each parameter's gradients go to the rank that owns it there, which takes their mean; owners
of the same parameter on all nodes average theirs by the reducer; and every owner gives the mean to the ranks of its
node. So the slow links between nodes carry each parameter once per node, in the reducer's bytes, and a residual lies on
one rank of each node: 4 / L bytes per parameter for L ranks.

Inside, everything travels exact, or by a compressor of its own (8 bits inside and 4 between: ZeRO++, Wang et al. 2023;
SDP4Bit, Jia et al. 2024). What that one loses in the first round is in no residual: the reducer compresses, and feeds
back, what the owners have.

Parameters are dealt out whole, so that matrices stay matrices. They go, in the order of the backward pass, each to the
rank with the least so far: then every stretch of that order is dealt out evenly, and so is every bucket, however the
host cuts them; and who owns what does not change when it cuts them anew.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from ..compressors.cast import Cast
from ..core.collectives import INSIDE, Collective
from ..core.compressor import Compressor
from ..core.context import Context
from ..core.deferred import either, fill_nan_where
from ..core.layout import Bucket, Layout, Segment
from ..core.packing import Packing
from ..core.random import key
from ..core.reducer import Flow, Reducer
from ..core.source import Source, Target
from ..core.state import State
from .base import RoundTrip
from .gather import check_whole, gather
from .rounds import to_owners

_LOSSLESS = {
    None: Cast(torch.bfloat16, dense_below=1 << 62),  # everything is exact, in fp32
    torch.bfloat16: Cast(torch.bfloat16, dense_below=0),
    torch.float16: Cast(torch.float16, dense_below=0),
}
"""How gradients travel exact inside a node, by the type that they have."""

_ONE = Layout.of([("first", (1,))])


@dataclass(eq=False)
class Within:
    """A node of ``world`` ranks, of which this is ``rank``. ``owners``: which of them owns each parameter, by name.
    ``inside``: what codes gradients and means between them; None: nothing, they are exact."""

    rank: int
    world: int
    owners: Mapping[str, int]
    inside: Compressor | None = None

    def own(self, layout: Layout) -> Layout:
        """What this rank owns of a bucket, end to end."""
        return self.every(layout)[self.rank]

    def every(self, layout: Layout) -> tuple[Layout, ...]:
        """What each rank of this node owns of a bucket, end to end."""
        return self._plan(layout, None)[0]

    def reduce(self, reducer: Reducer, source: Source, target: Target, state: State, ctx: Context) -> Flow:
        """As ``Reducer.reduce``, by ``reducer`` between nodes: ``ctx`` and ``state`` are those of the nodes."""
        own, packing = self.own(source.layout), self._plan(source.layout, ctx.dtype)[1]
        codec, seed = self._codec(ctx.dtype), key(ctx.seed, "inside")
        inside = replace(
            ctx, rank=self.rank, world=self.world, tag="inside ", bad=False, dtype=None, within=None,
            seed=key(seed, str(ctx.rank)),
        )  # fmt: skip
        mean = Bucket(ctx.buffer("mean inside", own.numel, torch.float32), own)
        trip = RoundTrip(codec, packing, source, Target(mean), inside, message=self.rank)
        payload = trip.encode()
        trip.wires, trip.flags = yield from _inside(to_owners(payload, inside, "received"))
        trip.decode(1.0, False)
        # So that the other nodes hear of it; one element, since memory keeps what is finite.
        fill_nan_where(Bucket(mean.flat[:1], _ONE if own.numel else own), trip.flags.bad)
        between = replace(ctx, within=None)
        result = yield from reducer.reduce(Source(mean), Target(mean), state.on(own), between)
        # All nodes code the same means, so they draw the same numbers, and all ranks hold the same bits.
        inside.seed, inside.bad = seed, between.bad  # the others of this node, who own other parameters, hear of it
        flags = yield from _inside(gather(codec, packing, mean, target, inside))
        ctx.bad, ctx.apart = either(ctx.bad, flags.bad), between.apart
        return replace(result, error=None, bad=ctx.bad)

    def _plan(self, layout: Layout, dtype: torch.dtype | None) -> tuple[tuple[Layout, ...], Packing]:
        """What each rank owns, and how a bucket travels inside."""
        found = self._plans.get((layout, dtype))
        if found is None:
            parts: list[list[tuple[int, Segment]]] = [[] for _ in range(self.world)]
            for index, s in enumerate(layout.segments):
                parts[self.owners[s.name]].append((index, s))
            owned = tuple(Layout([s for _, s in part], layout.numel).packed() for part in parts)
            found = owned, Packing(self._codec(dtype), tuple(map(tuple, parts)), len(layout.segments))
            self._plans[layout, dtype] = found
        return found

    def _codec(self, dtype: torch.dtype | None) -> Compressor:
        return self.inside or _LOSSLESS[dtype if dtype in _LOSSLESS else None]

    @cached_property
    def _plans(self) -> dict[Any, tuple[tuple[Layout, ...], Packing]]:
        return {}


def check_inside(call: str, compressor: Compressor) -> None:
    """Whether it may code what travels inside a node.

    Raises:
        ValueError: its messages vary in length, or it sends a part of the elements alone.
    """
    if compressor.variable:
        raise ValueError(f"{call}: its messages vary in length, which takes two rounds. Use one of a fixed length.")
    check_whole(
        call, compressor,
        "nothing inside a node remembers the rest. Use QSGD(bits=8, rounding='nearest') or Cast(bfloat16), and what is "
        "sparse between nodes.",
    )  # fmt: skip


def _inside(exchange: Generator[Collective, bool, Any]) -> Generator[Collective, bool, Any]:
    """The same collectives, among the ranks of this node."""
    try:
        op = next(exchange)
        while True:
            op = exchange.send((yield replace(op, axis=INSIDE)))
    except StopIteration as end:
        return end.value


def deal(sizes: Iterable[tuple[str, int]], world: int) -> dict[str, int]:
    """Which of ``world`` ranks owns each parameter: (name, elements) in the order of the model."""
    load, found = [0] * world, dict[str, int]()
    for name, numel in reversed(list(sizes)):
        owner = load.index(min(load))
        found[name] = owner
        load[owner] += numel
    return found
