"""Exact: the plain mean, in the gradient's own precision. The baseline, and what small tensors deserve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.collectives import AllReduce, ReduceScatter
from ..core.deferred import clear, either, not_finite
from ..core.layout import Bucket, Layout, Segment
from ..core.reducer import Context, Flow, Reduced, Reducer
from ..core.source import Source, Target
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

    def reduce(self, source: Source, target: Target, state: State, ctx: Context) -> Flow:
        given = source.x if source.add is None else source.add
        layout, out, world = source.layout, target.out, ctx.world
        in_place = out.flat is given.flat and layout.covers and out.layout == layout and not target.accumulate
        plain = (
            source.decay == 1.0 if source.add is None else (source.add_scale == 1.0 and not source.x.layout.segments)
        )
        dtype = given.flat.dtype
        if ctx.dtype is not None and plain and not target.accumulate:
            dtype, in_place = ctx.dtype, False  # the copy is wider than what it holds
        if in_place and plain:
            y = out.flat
        else:
            y = out.flat if in_place else ctx.buffer("exact", sum(s.numel for s in layout.segments), dtype)
            _gather(y, layout, source)
        scale = target.scale / world
        if scale != 1.0 and not y.is_meta:
            y.mul_(scale)  # before the sum, as DDP does: half-precision sums then fit
        rows = layout.rows(world) if layout.covers and out.layout != layout else None
        if rows is not None and sum(s.numel for s in out.layout.segments) * world == layout.numel:
            part = ctx.buffer("row", layout.numel // world, dtype)
            yield ReduceScatter(y, part)
            delivery = _Mean(out, part, Layout(rows[ctx.rank].segments, layout.numel).packed(), target.accumulate)
        else:
            yield AllReduce(y)
            delivery = _Mean(out, y, layout.packed(), target.accumulate)
        bad = not_finite(delivery.mean) if ctx.watch else False
        ctx.bad = either(ctx.bad, bad)
        if target.accumulate:  # what accumulates must not take in an infinity
            clear(delivery.mean, bad)
        if not in_place:
            delivery.add(1.0)
        return Reduced(undo=delivery.undo, bad=bad)


class _Mean(NamedTuple):
    """The mean, packed as ``where`` says, on its way to ``out``."""

    out: Bucket
    mean: Tensor
    where: Layout
    accumulate: bool

    def add(self, sign: float) -> None:
        for s in self.where.segments:
            at = self.out.layout.position(s)
            if at >= 0:
                part, mean = self.out.flat[at : at + s.numel], self.mean[s.start : s.stop]
                part.copy_(torch.add(part, mean, alpha=sign) if self.accumulate else mean)

    def undo(self) -> None:
        if self.accumulate:
            self.add(-1.0)


def _gather(y: Tensor, layout: Layout, source: Source) -> None:
    """y = decay*x + add_scale*add, packed; x keeps nothing."""
    x, add, decay, add_scale = source
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
