"""TwoPhase: split by owner, mean at the owner, encode again, gather. The all-reduce of payloads that cannot be summed.

The scheme of 1-bit Adam's compressed all-reduce (Tang et al. 2021, arXiv:2102.02888) and of CGX, for any compressor.
We differ from the former in that blocks belong to parameters, padding does not exist, and the owner's residual covers
only what it owns.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ..core.context import Context
from ..core.packing import pack_shares
from ..core.reducer import Flow
from ..core.source import Source, Target
from ..core.state import State
from ..core.traits import Traits
from .shards import Owners, TwoRounds


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

    @cached_property
    def traits(self) -> Traits:
        return super().traits._replace(half=True)

    def reduce(self, source: Source, target: Target, state: State, ctx: Context) -> Flow:
        layout, c = source.layout, self.compressor
        rounds = TwoRounds(c, pack_shares(c, layout, ctx.world), source, target, ctx)
        payload = yield from rounds.run(state["server"] if self.keeps else None)
        return rounds.deliver(payload)
