"""ReduceScatter: every payload goes one hop, to the rank that wants that row of the mean."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ..core.context import Context
from ..core.packing import pack_rows
from ..core.reducer import Flow, Reducer, Resolving
from ..core.source import Source, Target
from ..core.state import State
from ..core.traits import Traits
from .base import RoundTrip, Route
from .rounds import to_owners


@dataclass(frozen=True, repr=False)
class ReduceScatter(Route):
    """Row r of out, on rank r alone = (1/W) sum_s decode(row r of encode(x_s)), decoded in rank order.

    For hosts that shard (``fully_shard``): a buffer is W equal rows, and a rank wants its own. Each row is coded by
    itself, and travels once: bytes per rank (W-1)/W c for a payload of c bytes, half of two-phase's, one round, and
    nothing is lost beyond the compressor's own error. Sums are in fp32 whatever the wire's type is, so
    ``ReduceScatter(Cast(torch.bfloat16))`` is a reduce-scatter in bfloat16 that rounds each addend once and no sum.

    Linear payloads go the same way: a ring's reduce-scatter of them would send as many bytes.

    No state; a feedback scheme around it keeps residuals for all rows, as a rank codes all of them. Works with every
    compressor, and where rows are wanted alone (``Target(row=True)``); a compressor that is attached to a model sharded
    by ``fully_shard`` gets this route.
    """

    @cached_property
    def traits(self) -> Traits:
        return super().traits._replace(half=True, weights=True)

    def resolve(self, to: Resolving) -> Reducer:
        if not to.rows:
            raise ValueError(
                f"{self!r}: every rank wants the whole mean here, and this gives a row of it. Use the compressor as it "
                f"is, or TwoPhase({self.compressor!r})."
            )
        return self

    def reduce(self, source: Source, target: Target, state: State, ctx: Context) -> Flow:
        packing = pack_rows(self.compressor, source.layout, state.layout, ctx.world)
        trip = RoundTrip(self.compressor, packing, source, target, ctx, message=ctx.rank)
        payload = trip.encode()
        trip.wires, trip.flags = yield from to_owners(payload, ctx, "received")
        return trip.deliver(payload)
