"""Exact: the plain mean, in the gradient's own precision. The baseline, and what small tensors deserve."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.collectives import AllReduce, ReduceScatter
from ..core.deferred import clear, either, not_finite
from ..core.layout import Bucket, Layout, Segment
from ..core.reducer import (
    Context,
    Flow,
    Reduced,
    Reducer,
    source,
)
from ..core.state import State


@dataclass(frozen=True, repr=False)
class Exact(Reducer):
    """out = (1/W) sum_r x_r by an all-reduce of the bucket as it is (fp32, bf16, ...).

    Bytes per rank: 2 (W-1)/W times the bucket's. No state, no error. For a sharded host's buffer a reduce-scatter,
    half the bytes.
    """

    def exact(self, segment: Segment) -> bool:
        return True

    def delta(self, segment: Segment) -> float | None:
        return 1.0

    def contractive(self, scheme: str) -> Reducer:
        if scheme == "ErrorFeedback":
            return self
        raise ValueError(f"{scheme}(Exact()): Exact() loses nothing, so there is nothing to feed back. Use Exact().")

    def native(self, step: int) -> bool:
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
        layout = source(x, add)
        in_place = out.flat is (add or x).flat and layout.covers and out.layout == layout and not accumulate
        plain = decay == 1.0 if add is None else (add_scale == 1.0 and not x.layout.segments)
        dtype = (add or x).flat.dtype
        if ctx.dtype is not None and plain and not accumulate:
            dtype, in_place = ctx.dtype, False  # the copy is wider than what it holds
        if in_place and plain:
            y = out.flat
        else:
            y = out.flat if in_place else ctx.buffer("exact", sum(s.numel for s in layout.segments), dtype)
            _gather(y, layout, x, add, decay, add_scale)
        scale = out_scale / ctx.world
        if scale != 1.0 and not y.is_meta:
            y.mul_(scale)  # before the sum, as DDP does: half-precision sums then fit
        rows = layout.rows(ctx.world) if layout.covers and out.layout != layout else None
        if rows is not None and sum(s.numel for s in out.layout.segments) * ctx.world == layout.numel:
            part = ctx.buffer("row", layout.numel // ctx.world, dtype)
            yield ReduceScatter(y, part)
            total, where = part, Layout(rows[ctx.rank].segments, layout.numel).packed()
        else:
            yield AllReduce(y)
            total, where = y, layout.packed()
        bad = not_finite(total) if ctx.watch else False
        ctx.bad = either(ctx.bad, bad)
        if accumulate:  # what accumulates must not take in an infinity
            clear(total, bad)

        def add_to_out(sign: float) -> None:
            for s in where.segments:
                at = out.layout.position(s)
                if at >= 0:
                    part, mean = out.flat[at : at + s.numel], total[s.start : s.stop]
                    part.copy_(torch.add(part, mean, alpha=sign) if accumulate else mean)

        def undo() -> None:
            if accumulate:
                add_to_out(-1.0)

        if not in_place:
            add_to_out(1.0)
        return Reduced(undo=undo, bad=bad)


def _gather(y: Tensor, layout: Layout, x: Bucket, add: Bucket | None, decay: float, add_scale: float) -> None:
    """y = decay*x + add_scale*add, packed; x keeps nothing."""
    for s, to in zip(layout.segments, layout.packed().segments, strict=True):
        part = y[to.start : to.stop]
        at = x.layout.position(s)
        old = None if at < 0 else x.flat[at : at + s.numel]
        if add is None:
            part.copy_(old * decay if old is not None and decay != 1.0 else old)  # type: ignore[arg-type]
            continue
        grad = add.flat[s.start : s.stop]
        part.copy_(grad * add_scale if old is None else old * decay + grad * add_scale)
        if old is not None:
            old.zero_()
