"""AllGather: every rank sends its payload to every other, and all decode all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from ..core.compressor import Compressor
from ..core.layout import Layout, Segment
from ..core.packing import pack
from ..core.reducer import Context, Flow
from ..core.source import Source, Target
from ..core.state import Slot, State
from .base import RoundTrip, Route
from .rounds import to_all


@dataclass(frozen=True, repr=False)
class AllGather(Route):
    """out = (1/W) sum_r decode(encode(x_r)), payloads decoded in rank order.

    Bytes per rank: (W-1) c for a payload of c bytes, so it suits sparse payloads while W is below about 1/density, and
    any payload between two ranks. One round; nothing is lost beyond the compressor's own error.

    Finite values whose sum over the ranks exceeds fp32's range (3.4e38) reach ``out`` as infinity, and that alone does
    not undo the step: looking would cost a pass over the mean.

    State: the compressor's hints. Works with every compressor.
    """

    @property
    def narrow(self) -> bool:
        return True

    @property
    def weighs(self) -> bool:
        return True

    def slots(self, segment: Segment, world: int) -> Mapping[str, Slot]:
        return {} if self.exact(segment) else self.compressor.slots(segment)

    def reduce(self, source: Source, target: Target, state: State, ctx: Context) -> Flow:
        layout = source.layout
        trip = RoundTrip(self.compressor, pack(self.compressor, layout), source, target, ctx)
        payload = trip.encode({name: state[name].flat for name in _hints(self.compressor, layout)})
        trip.wires, trip.flags = yield from to_all(payload, ctx, "gathered")
        return trip.deliver(payload)


@lru_cache(maxsize=4096)
def _hints(compressor: Compressor, layout: Layout) -> tuple[str, ...]:
    coded = (s for s in layout.segments if s.numel and not compressor.exact(s))
    return tuple(dict.fromkeys(name for s in coded for name in compressor.slots(s)))
