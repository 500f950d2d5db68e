"""What schemes share that send the change of an estimate: a dense first step, and the mean that they deliver."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from functools import cached_property, lru_cache

import torch

from ..core.context import Context
from ..core.deferred import either, fill_nan_where
from ..core.layout import Bucket, Layout, Segment
from ..core.reducer import Flow, Reduced
from ..core.source import Source, Target
from ..core.spans import clear_
from ..core.state import State
from ..core.traits import Promises, Traits
from ..routes.exact import Exact
from . import slabs
from .base import FeedbackScheme


class EstimateScheme(FeedbackScheme, ABC, abstract=True):
    """Base of the schemes that keep an estimate h of each rank's gradient (slot "estimate", MEAN) and m, the mean of
    all h (slot "mean", REPLICATED), which is what they give. To write one: the fields ``start`` and ``dtype``, and
    ``memory`` and ``step`` as in ``FeedbackScheme``."""

    start: bool
    dtype: torch.dtype

    absorbs = "mean"
    integrates = True

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        if not isinstance(self.start, bool):
            raise TypeError(f"{name}(start={self.start!r}): True (a dense first step) or False.")
        if self.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{name}(dtype={self.dtype!r}): estimates are torch.float32 or torch.float64.")

    @cached_property
    def traits(self) -> Traits:
        return super().traits._replace(accumulates=False)  # every pass gives the estimate of one pass's gradient

    def promises(self, segment: Segment) -> Promises:
        return Promises(conserves=self.exact(segment))

    def same_dtype(self, x: Bucket) -> None:
        """Raises TypeError where the gradients are not of ``dtype``."""
        if x.flat.dtype != self.dtype:
            raise TypeError(f"{self!r}: gradients are {x.flat.dtype} here. Use dtype={str(x.flat.dtype)[6:]}.")

    def deliver(
        self, result: Reduced, layout: Layout, mean: Bucket, exact: Bucket, target: Target, ctx: Context
    ) -> None:
        """out = (out if accumulate) + scale * mean: zero where every rank's gradient, of ``layout``, is, NaN on a bad
        step. Then clears ``exact``, the part of ``mean`` that travelled uncompressed."""
        out, scale, accumulate, _ = target
        if out.layout == mean.layout and out.layout.covers and not accumulate:
            torch.mul(mean.flat, scale, out=out.flat)
        else:
            slabs.deliver(out, mean, ctx, scale, accumulate)
        if not accumulate:
            slabs.clear(out, layout, result.unused)
        clear_(exact)
        ctx.bad = either(ctx.bad, result.bad)
        if not accumulate:
            fill_nan_where(out, result.bad)

    def begin(
        self, tracked: Sequence[tuple[Bucket, float]], mean: Bucket, source: Source, target: Target, state: State,
        ctx: Context,
    ) -> Flow:  # fmt: skip
        """The dense first step: m = mean of g, and every slab, given with a factor, that times g. Undone: all zero."""
        x, scale = source.x, source.decay
        status = slabs.zero_status(ctx, x.layout)
        for slab, factor in tracked:
            slabs.axpby(slab, x, status, beta=scale * factor)
        dtype, ctx.dtype = ctx.dtype, None  # m is to be the mean of h for good, and no rounded one
        result = yield from Exact().reduce(Source(x), Target(x, row=target.row), state, ctx)
        ctx.dtype = dtype
        slabs.axpby(mean, x, slabs.zero_status(ctx, x.layout, "discarded"), beta=scale)
        exact = lacking(mean, tracked[0][0])
        self.deliver(result, x.layout, mean, exact, target, ctx)

        def on_rollback() -> None:
            mean.flat.zero_()
            for slab, _ in tracked:
                slab.flat.zero_()

        return Reduced(on_rollback=on_rollback, bad=result.bad)


def wanted(bucket: Bucket, out: Bucket) -> Bucket:
    """The segments of ``bucket`` that ``out`` has too."""
    return Bucket(bucket.flat, slabs.shared(bucket.layout, out.layout))


def lacking(bucket: Bucket, other: Bucket) -> Bucket:
    """The segments of ``bucket`` that ``other`` lacks."""
    return Bucket(bucket.flat, _difference(bucket.layout, other.layout))


@lru_cache(maxsize=4096)
def _difference(layout: Layout, other: Layout) -> Layout:
    return layout.select(lambda s: s.numel > 0 and other.position(s) < 0)
