"""TwoPhase: split by owner, mean at the owner, encode again, gather. The all-reduce of payloads that cannot be summed.

The scheme of 1-bit Adam's compressed all-reduce (Tang et al. 2021, arXiv:2102.02888) and of CGX, for any compressor.
We differ from the former in that blocks belong to parameters, padding does not exist, and the owner's residual covers
only what it owns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch

from ..bucket import Bucket, Layout, Segment
from ..reducer import Context, Flow, Reduced, Reducer, Sent
from ..store import Merge, Slot, State
from ..wire import Packing, pack_rows, pack_shares
from .exchange import to_all, to_owners
from .route import Route, finish


@dataclass(frozen=True, repr=False)
class TwoPhase(Route):
    """m = (1/W) sum_r decode(encode(x_r)) at each block's owner; out = decode(encode(m)) on every rank.

    Rank r owns blocks floor(r nb/W) to floor((r+1) nb/W) of each parameter. Bytes per rank: (W-1)/W (c + c) for a
    payload of c bytes, whatever W is. Two rounds. The owner decodes its own bytes too: all ranks hold the same bits.

    ``server``: what the owner does about the loss of its own encoding. ``ErrorFeedback``: it keeps a residual for the
    blocks that it owns (slot "server", SHARDED) and adds it to the next mean. ``False``: nothing. ``None`` (default):
    ``ErrorFeedback`` where feedback is around it, else nothing. Conservation then reads
    sum of outs + mean residual + server residuals = sum of mean inputs.
    """

    server: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        from ..feedback.error_feedback import ErrorFeedback

        if self.server not in (None, False, ErrorFeedback):
            raise ValueError(
                f"TwoPhase({self.compressor!r}, server={self.server!r}): the owner's scheme is ErrorFeedback, "
                f"False (none) or None (chosen)."
            )
        if self.server is ErrorFeedback and self.compressor.delta(1 << 20) is None:
            self.compressor.contractive()  # raises, unless shrinking would help
            raise ValueError(
                f"TwoPhase({self.compressor!r}, server=ErrorFeedback): use Contractive({self.compressor!r})."
            )

    @property
    def keeps(self) -> bool:
        """Whether the owner keeps a residual."""
        return bool(self.server)

    def under_feedback(self) -> Reducer:
        from ..feedback.error_feedback import ErrorFeedback

        if self.server is None:
            return replace(self, server=ErrorFeedback)
        return self

    @property
    def stateful(self) -> bool:
        return self.keeps

    def conserves(self, segment: Segment) -> bool:
        return self.keeps or self.exact(segment)

    def slots(self, segment: Segment, world: int) -> Mapping[str, Slot]:
        if not self.keeps or self.exact(segment):
            return {}
        return {"server": Slot(Merge.SHARDED, grain=self.compressor.grain)}

    def reduce(
        self,
        x: Bucket,
        out: Bucket,
        state: State,
        ctx: Context,
        *,
        add: Bucket | None = None,
        decay: float = 1.0,
        add_scale: float = 1.0,
        out_scale: float = 1.0,
        accumulate: bool = False,
    ) -> Flow:
        layout, c, world = (add or x).layout, self.compressor, ctx.world
        sharded = out.layout != layout and not all(out.layout.position(s) >= 0 for s in layout.segments)
        packing = pack_rows(c, layout, world) if sharded else pack_shares(c, layout, world)
        payload = c.encode_(
            x, ctx.rng, add=add, decay=decay, add_scale=add_scale,
            wire=ctx.buffer("sent", packing.nbytes), packing=packing,
        )  # fmt: skip
        wires, flags = yield from to_owners(payload, ctx, "received")
        if sharded:
            c.decode_(
                wires, out, ctx.rng, packing,
                scale=out_scale / world, skip=flags.skip, accumulate=accumulate, message=ctx.rank,
            )  # fmt: skip
            return finish(payload, flags, x, out, ctx)

        owned = _owned(packing, ctx.rank)
        mean = Bucket(ctx.buffer("mean", owned.numel, torch.float32), owned)
        c.decode_(wires, mean, ctx.rng, packing, scale=1.0 / world, skip=flags.skip, message=ctx.rank)
        noise = ctx.rng._replace(rank=-1 - ctx.rank)  # not that of the first encoding
        server = state["server"] if self.keeps else mean
        unscale = ctx.unscale if self.keeps else 1.0
        second = c.encode_(
            server, noise, add=mean if self.keeps else None, add_scale=unscale,
            wire=ctx.buffer("owned", max(packing.splits)), packing=packing, message=ctx.rank,
        )  # fmt: skip
        gathered, again = yield from to_all(second, ctx, "gathered")
        flags = flags._replace(bad=flags.bad or again.bad)
        c.decode_(
            gathered.view(1, -1), out, ctx.rng, packing,
            scale=out_scale / unscale, skip=flags.skip, accumulate=accumulate, stride=gathered.shape[1],
        )  # fmt: skip
        result = finish(payload, flags, x, out, ctx)
        if not self.keeps:
            return result
        if flags.zero:
            second.decode_add_(server, skip=1 - flags.skip)
        kept = Sent(second, flags.skip if flags.zero else None)

        def undo() -> None:
            # The workers take their payloads back, so the owner keeps neither their mean nor what it sent of it.
            kept.add_(server)
            for s in server.layout.segments:
                at = owned.position(s)
                m = mean.flat[at : at + s.numel] * unscale
                server.flat[s.start : s.stop] -= torch.where(torch.isfinite(m), m, 0.0)  # infinities never entered

        return Reduced(result.sent, result.error, undo)


@lru_cache(maxsize=4096)
def _owned(packing: Packing, rank: int) -> Layout:
    """The shares of one owner, packed in the order of the segments."""
    rows = [r for r in (*packing.exact, *packing.coded) if r.message == rank]
    rows.sort(key=lambda r: (r.number, r.segment.offset))
    return Layout([r.segment for r in rows], packing.extent).packed()
