"""Gather: every rank's own row, coded once, to every rank. What it gathers is no mean, so this is no reducer."""

from __future__ import annotations

from collections.abc import Generator

from ..core.collectives import Collective
from ..core.compressor import Compressor
from ..core.context import Context
from ..core.deferred import fill_nan_where
from ..core.layout import Bucket, Layout
from ..core.packing import pack_rows
from ..core.random import Rng
from ..core.source import Source, Target
from .rounds import to_all


def gather(compressor: Compressor, own: Bucket, out: Bucket, ctx: Context) -> Generator[Collective, bool, None]:
    """out = every rank's decode(encode(own)), also this rank's own: all ranks hold the same bits.

    ``out``: fp32, laid out in W rows (``Layout.equal_rows``); ``own``: this rank's (``Layout.row``), written over; it
    may lie in ``out``. Bytes per rank: (W-1) c for a payload of c bytes. Where a rank's row is not finite, ``out`` is
    NaN. ``ctx.step`` and ``ctx.bucket`` are in the headers, and draws are those of that step.
    """
    layout = out.layout
    packing = pack_rows(compressor, layout, layout, ctx.world)
    rng = Rng(ctx.seed, ctx.step, 0)  # not the rank's: who decodes draws what the sender drew
    payload = compressor.encode_(
        Source(own), rng, wire=ctx.buffer("gather own", max(packing.splits)), packing=packing, message=ctx.rank,
        status=ctx.buffer("gather status", 1 + packing.count),
    )  # fmt: skip
    messages, flags = yield from to_all(payload, ctx, "gather")
    compressor.decode_(messages.view(1, -1), Target(out), rng, packing, stride=messages.shape[1])
    fill_nan_where(out, flags.bad)


def even_rows(shape: tuple[int, ...], world: int) -> Layout:
    """One tensor of ``shape`` per rank, end to end: rows of one with a dimension more, so that vectors are coded too."""
    return Layout.of([("tensor", (world, *(shape or (1,))))]).sharded(world)
