"""Gather: every rank's own part, coded once, to every rank. What it gathers is no mean, so this is no reducer."""

from __future__ import annotations

from collections.abc import Generator

import torch

from ..core.collectives import Collective
from ..core.compressor import Compressor
from ..core.context import Context
from ..core.deferred import fill_nan_where
from ..core.header import Flags
from ..core.layout import Bucket, Layout
from ..core.packing import Packing
from ..core.random import Rng
from ..core.source import Source, Target
from .rounds import to_all


def gather(
    compressor: Compressor, packing: Packing, own: Bucket, target: Target, ctx: Context
) -> Generator[Collective, bool, Flags]:
    """target.out = (out if accumulate) + scale * every rank's decode(encode(own)), also this rank's own: all ranks hold
    the same bits.

    ``packing`` has a message per rank; ``own``: the parts in this rank's, fp32, written over, which may lie in ``out``.
    Bytes per rank: (W-1) times the longest message. Where a rank's part is not finite (or its ``ctx.bad``), ``out`` is
    NaN. ``ctx.step`` and ``ctx.bucket`` are in the headers, and draws are those of that step. Returns what the headers
    say.
    """
    rng = Rng(ctx.seed, ctx.step, 0)  # not the rank's: who decodes draws what the sender drew
    payload = compressor.encode_(
        Source(own), rng, wire=ctx.buffer("gather own", max(packing.splits)), packing=packing, message=ctx.rank,
        status=ctx.buffer("gather status", 1 + packing.count),
    )  # fmt: skip
    if ctx.bad is not False:
        payload.status[:1] |= ctx.bad
    messages, flags = yield from to_all(payload, ctx, "gather")
    out, scale, accumulate, _ = target
    compressor.decode_(
        messages.view(1, -1), Target(out, scale, accumulate), rng, packing, stride=messages.shape[1]
    )  # fmt: skip
    fill_nan_where(out, flags.bad)
    return flags


def check_whole(call: str, compressor: Compressor, why: str) -> None:
    """Whether it sends all elements of what it codes; ``why`` it must.

    Raises:
        ValueError: it sends some.
    """
    if compressor.sparse or (compressor.linear and compressor.dtype == torch.float32):
        raise ValueError(f"{call}: it sends a part of the elements, and {why}")


def even_rows(shape: tuple[int, ...], world: int) -> Layout:
    """One tensor of ``shape`` per rank, end to end: rows of one with a dimension more, so that vectors are coded
    too."""
    return Layout.of([("tensor", (world, *(shape or (1,))))]).sharded(world)
