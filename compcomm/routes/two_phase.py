"""TwoPhase: split by owner, mean at the owner, encode again, gather. The all-reduce of payloads that cannot be summed.

The scheme of 1-bit Adam's compressed all-reduce (Tang et al. 2021, arXiv:2102.02888) and of CGX, for any compressor.
We differ from the former in that blocks belong to parameters, padding does not exist, and the owner's residual covers
only what it owns.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..core.layout import Bucket
from ..core.packing import pack_rows
from ..core.reducer import Context, Flow, source
from ..core.state import State
from .base import adder, finish, hear
from .rounds import to_owners
from .shards import Owners, phases


@dataclass(frozen=True, repr=False)
class TwoPhase(Owners):
    """m = (1/W) sum_r decode(encode(x_r)) at each block's owner; out = decode(encode(m)) on every rank.

    Rank r owns blocks floor(r nb/W) to floor((r+1) nb/W) of each parameter. Bytes per rank: (W-1)/W (c + c) for a
    payload of c bytes, whatever W is. Two rounds. The owner decodes its own bytes too: all ranks hold the same bits.

    ``server``: what the owner does about the loss of its own encoding. ``ErrorFeedback``: it keeps a residual for the
    blocks that it owns (slot "server", SHARDED) and adds it to the next mean. ``False``: nothing. ``None`` (default):
    ``ErrorFeedback`` where feedback is around it, else nothing. Conservation then reads
    sum of outs + mean residual + server residuals = sum of mean inputs. ``EF21`` (chosen inside ``EF21`` and
    ``EControl``): what it keeps is mean(h) - m, and the codes of that bring m nearer.
    """

    @property
    def narrow(self) -> bool:
        return True

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
        layout, c, world = source(x, add), self.compressor, ctx.world
        if out.layout != layout and not all(out.layout.position(s) >= 0 for s in layout.segments if s.numel):
            packing = pack_rows(c, layout, world)
            payload = c.encode_(
                x, ctx.rng, add=add, decay=decay, add_scale=add_scale,
                wire=ctx.buffer("sent", packing.nbytes), packing=packing,
                status=ctx.buffer("sent status", 1 + packing.count),
            )  # fmt: skip
            hear(payload.status, ctx)
            wires, flags = yield from to_owners(payload, ctx, "received")
            decode_row = adder(c, wires, out, ctx, packing, out_scale / world, flags.skip, message=ctx.rank)
            return finish(payload, flags, x, out, ctx, decode_row, accumulate)
        server = state["server"] if self.keeps else None
        done = yield from phases(c, x, server, ctx, layout, add=add, decay=decay, add_scale=add_scale)

        def decode(sign: float, accumulate: bool) -> None:
            c.decode_(
                done.gathered.view(1, -1), out, ctx.rng, done.payload.packing, scale=sign * out_scale * done.scale,
                skip=done.flags.skip, accumulate=accumulate, stride=done.gathered.shape[1],
            )  # fmt: skip

        result = finish(done.payload, done.flags, x, out, ctx, decode, accumulate)
        return result.after(done.undo)
