"""Exact: the plain mean, in the gradient's own precision. The baseline, and what small tensors deserve."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

from ..core.collectives import AllReduce, ReduceScatter
from ..core.context import Context
from ..core.deferred import clear, either, not_finite
from ..core.layout import Bucket, Layout, Segment
from ..core.reducer import Flow, Reduced, Reducer
from ..core.source import Source, Target
from ..core.spans import add_, clear_padding, copy_, move_
from ..core.state import State
from ..core.traits import ALWAYS, Promises, Traits


@dataclass(frozen=True, repr=False)
class Exact(Reducer):
    """out = (1/W) sum_r x_r by an all-reduce of the bucket as it is (fp32, bf16, ...).

    Bytes per rank: 2 (W-1)/W times the bucket's. No state, no error. Where each rank wants its own row of a sharded
    host's buffer, a reduce-scatter of the buffer as it is (padding included), half the bytes; each rank then sees
    non-finite values of its own row alone, and the ranks tell each other at the end of the step, if one must know.
    """

    def exact(self, segment: Segment) -> bool:
        return True

    def promises(self, segment: Segment) -> Promises:
        return Promises(delta=1.0)

    @cached_property
    def traits(self) -> Traits:
        return Traits(in_dtype=ALWAYS)

    def contractive(self, scheme: str) -> Reducer:
        if scheme == "ErrorFeedback":
            return self
        raise ValueError(f"{scheme}(Exact()): Exact() loses nothing, so there is nothing to feed back. Use Exact().")

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
        even = _even_rows(layout, state.layout, ctx.rank, world) if target.row else None
        in_place = in_place and even is None
        packed = layout.packed() if even is None else even[0]
        scale = target.scale / world
        if even is not None and plain and scale == 1.0 and dtype == given.flat.dtype and even[0] is given.layout:
            y = given.flat[: packed.numel]  # the host's own rows
        else:
            y = out.flat if in_place else ctx.buffer("exact" if even is None else "exact rows", packed.numel, dtype)
            if not (in_place and plain):
                _gather(Bucket(y, packed), source, in_place)
            if scale != 1.0 and not y.is_meta:
                y.mul_(scale)  # before the sum, as DDP does: half-precision sums then fit
        if even is None:
            yield AllReduce(y)
            delivery = _Mean(out, Bucket(y, packed), target.accumulate)
        else:
            ctx.apart = True
            size, row = packed.numel // world, even[1]
            direct = out.layout == row and out.flat.numel() == size and out.flat.dtype == dtype
            in_place = direct and not target.accumulate
            part = out.flat if in_place else ctx.buffer("row", size, dtype)
            yield ReduceScatter(y, part)
            delivery = _Mean(out, Bucket(part, row), target.accumulate)
        bad = not_finite(delivery.mean.flat) if ctx.watch else False
        ctx.bad = either(ctx.bad, bad)
        if target.accumulate:  # what accumulates must not take in an infinity
            clear(delivery.mean.flat, bad)
        if not in_place:
            delivery.add(1.0)
        return Reduced(on_rollback=delivery.on_rollback, bad=bad)


class _Mean(NamedTuple):
    """The mean on its way to ``out``."""

    out: Bucket
    mean: Bucket
    accumulate: bool

    def add(self, sign: float) -> None:
        if self.accumulate:
            add_(self.out, self.mean, sign)
        else:
            copy_(self.out, self.mean)

    def on_rollback(self) -> None:
        if self.accumulate:
            self.add(-1.0)


def _gather(y: Bucket, source: Source, in_place: bool) -> None:
    """y = decay*x + add_scale*add; x keeps nothing. ``in_place``: y is the gradient's own buffer."""
    x, add, decay, add_scale = source
    given, scale = (x, decay) if add is None else (add, add_scale)
    if not in_place:
        clear_padding(y)
        copy_(y, given)
    if scale != 1.0:
        y.flat.mul_(scale)
    if add is not None:
        move_(y, x, decay)


@lru_cache(maxsize=4096)
def _even_rows(layout: Layout, host: Layout, rank: int, world: int) -> tuple[Layout, Layout] | None:
    """Rows of equal length for a reduce-scatter, and this rank's of them, which begins at 0: the host's own where one
    of them is full, else (for a part of its segments) packed one by one and as long as the longest. None where an
    all-reduce is no longer; all ranks find the same."""
    rows, size = host.equal_rows(world), host.numel // world
    owned = [[s for s in row.segments if layout.position(s) >= 0] for row in rows]
    lengths = [sum(s.numel for s in row) for row in owned]
    width, segments = max(lengths), list[Segment]()
    if layout == host and width == size:
        return host, host.row(world, rank)
    if world * width > 2 * sum(lengths):
        return None
    for r, row in enumerate(owned):
        start = r * width
        for s in row:
            segments.append(s._replace(start=start, stop=start + s.numel))
            start += s.numel
    mine = Layout((s for s in segments if rank * width <= s.start < (rank + 1) * width), world * width)
    return Layout(segments, world * width), Layout(mine.packed().segments, width)
