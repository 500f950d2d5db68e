"""What a rank that failed sends for the rest of its step, so that its peers end with an error and not in a hang.

Peers wait for a known sequence of collectives. A failed rank therefore runs the rest of it with content that nobody
can take for a gradient: messages whose header says "failed", sums full of NaN, maxima full of infinity (a maximum may
drop a NaN), and integers that are all zero, which whoever sums integers must be able to tell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor

from ..core.collectives import (
    INSIDE,
    AllReduceMax,
    AllToAll,
    Collective,
)
from ..core.context import Arena, Context
from ..core.drive import rehearse as on_paper
from ..core.header import write_header
from ..core.layout import Bucket
from ..core.reducer import Reducer, flow
from ..core.source import Target
from ..core.state import State, Store
from ..core.structure import current

_HEADER = 20  # the fixed fields, which a reader checks before anything else


def outline(op: Collective) -> Collective:
    """The same collective on tensors without content: what it is, at no cost in memory."""

    def ghost(t: Tensor) -> Tensor:
        return torch.empty(t.shape, dtype=t.dtype, device="meta")

    return _each(op, ghost)


def rehearse(
    reducer: Reducer, state: State, ctx: Context, dtype: torch.dtype, target: Target | None = None
) -> list[Collective]:
    """The collectives of a bucket in this step, from the flow itself on tensors without content. ``target``: where the
    mean goes, if not where the gradient was: a row takes another way than the whole."""
    reducer, layout = current(reducer, state), state.layout
    ghost = replace(ctx, arena=Arena("meta"), watch=False, bad=False, tag="")
    bucket = Bucket(torch.empty(layout.numel, dtype=dtype, device="meta"), layout)
    wanted = None
    if target is not None:
        size, layout_out = target.out.flat.numel(), target.out.layout
        wanted = target._replace(out=Bucket(torch.empty(size, dtype=dtype, device="meta"), layout_out))
    store = Store(reducer, ctx.rank, ctx.world, "meta", rows=state.store.rows)
    found = [outline(op) for op in on_paper(flow(reducer, bucket, State(store, layout), ghost, wanted))]
    ctx.apart = ctx.apart or ghost.apart
    return found


def failed(ops: Sequence[Collective], ctx: Context) -> list[Collective]:
    """The same collectives with real tensors that say "failed"."""
    return [_spoil(op, ctx) for op in ops]


def _spoil(op: Collective, ctx: Context) -> Collective:
    def fresh(t: Tensor) -> Tensor:
        wrong = float("inf") if isinstance(op, AllReduceMax) else float("nan")
        fill = wrong if t.dtype.is_floating_point else 0
        return torch.full(t.shape, fill, dtype=t.dtype, device=ctx.arena.device)

    real = _each(op, fresh)
    here = ctx if op.axis != INSIDE or ctx.within is None else replace(ctx, rank=ctx.within.rank)
    for field in ("send", "buffer"):
        sent = getattr(real, field, None)
        if sent is not None and sent.dtype == torch.uint8:
            splits = real.send_splits if isinstance(real, AllToAll) else (sent.numel(),)
            for message in sent.split(splits):
                if message.numel() >= _HEADER:
                    write_header(message, torch.zeros(1, dtype=torch.uint8), here, failed=True)
    return real


def _each(op: Collective, change: Callable[[Tensor], Tensor]) -> Collective:
    tensors = {f.name: getattr(op, f.name) for f in fields(op)}
    return replace(op, **{name: change(t) for name, t in tensors.items() if isinstance(t, Tensor)})
