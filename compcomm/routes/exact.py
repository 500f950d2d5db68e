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

    Bytes per rank: 2 (W-1)/W times the bucket's. No state, no error. For a sharded host's buffer a reduce-scatter,
    half the bytes.
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
        even = None if in_place else _even_rows(layout, out.layout, ctx.rank, world)
        packed = layout.packed() if even is None else even[0]
        y = out.flat if in_place else ctx.buffer("exact" if even is None else "exact rows", packed.numel, dtype)
        if not (in_place and plain):
            _gather(Bucket(y, packed), source, in_place)
        scale = target.scale / world
        if scale != 1.0 and not y.is_meta:
            y.mul_(scale)  # before the sum, as DDP does: half-precision sums then fit
        if even is None:
            yield AllReduce(y)
            delivery = _Mean(out, Bucket(y, packed), target.accumulate)
        else:
            part = ctx.buffer("row", packed.numel // world, dtype)
            yield ReduceScatter(y, part)
            delivery = _Mean(out, Bucket(part, even[1]), target.accumulate)
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
def _even_rows(layout: Layout, wanted: Layout, rank: int, world: int) -> tuple[Layout, Layout] | None:
    """The rows of a sharded host's buffer, packed one by one and as long as the longest, for a reduce-scatter, and this
    rank's of them; None where a rank wants more than its own row, or an all-reduce is no longer.

    All ranks must find the same, so it does not count which row is this rank's: where a single one has all segments,
    its owner cannot tell it from the whole.
    """
    rows = layout.rows(world) or ()
    lengths = [sum(s.numel for s in row.segments) for row in rows]
    if sum(map(bool, lengths)) < 2 or world * max(lengths) > 2 * sum(lengths):
        return None
    if any((wanted.position(s) >= 0) != (r == rank) for r, row in enumerate(rows) for s in row.segments if s.numel):
        return None
    width, segments = max(lengths), list[Segment]()
    for r, row in enumerate(rows):
        start = r * width
        for s in row.segments:
            segments.append(s._replace(start=start, stop=start + s.numel))
            start += s.numel
    return Layout(segments, world * width), rows[rank].packed()
