"""Between a bucket and the slabs of a scheme: one kernel call for all segments, tables kept."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..core.compressor import ops
from ..core.context import Context
from ..core.layout import Bucket, Layout


def axpby(to: Bucket, source: Bucket, status: Tensor, *, alpha: float = 0.0, beta: float | Tensor = 1.0) -> None:
    """to <- alpha*to + beta*source for the segments that both have; ``beta`` may be one number per such segment.

    What is not finite in ``source`` counts as zero, and ``status`` (numbered as ``source``'s segments) says so.
    """
    table = _table(to.layout, source.layout)
    if isinstance(beta, float):
        beta = _betas(beta, len(table), source.flat.dtype)
    if len(table):
        ops.axpby(to.flat, source.flat, table, beta, status, alpha)


def norms(gradient: Bucket, ctx: Context) -> Tensor:
    """The L2 norm of every segment, fp64; what is not finite counts as zero."""
    table = _table(gradient.layout, gradient.layout)
    found = ctx.buffer("norms", len(table), torch.float64)
    ops.norms(gradient.flat, table, found)
    return found


def add_correction(x: Bucket, error: Bucket, estimate: Bucket, status: Tensor, *, eta: float, scale: float) -> None:
    """x <- x + scale*(eta*error - estimate) for the segments that all have; what is not finite in ``x`` counts as
    zero, and ``status`` says so. ``error`` and ``estimate`` are of one layout."""
    table = _table(x.layout, error.layout)
    if len(table):
        ops.add_correction(x.flat, error.flat, estimate.flat, table, status, eta, scale)


def nonzero_segments(gradient: Bucket, status: Tensor) -> None:
    """Says in ``status`` which segments have an element that is not zero."""
    ops.nonzero_segments(gradient.flat, _table(gradient.layout, gradient.layout), status)


def deliver(out: Bucket, source: Bucket, ctx: Context, scale: float, accumulate: bool) -> None:
    """out = (out if accumulate) + scale * source, for the segments that ``out`` has."""
    discarded = zero_status(ctx, source.layout, "discarded")
    axpby(out, source, discarded, alpha=1.0 if accumulate else 0.0, beta=scale)


def zero_status(ctx: Context, layout: Layout, tag: str = "status") -> Tensor:
    """Zeros: an entry for "not finite" and one per segment. A buffer per size: two of one tag would be made anew in
    every step."""
    numel = 1 + len(layout.segments)
    return ctx.buffer(f"{tag} {numel}", numel).zero_()


def clear(bucket: Bucket, numbering: Layout, marks: Tensor | None) -> None:
    """Zeroes the segments that ``marks`` (uint8 per segment of ``numbering``, or None) marks, where ``bucket`` has
    them."""
    if marks is not None and not bucket.flat.is_meta:
        ops.fill_masked(bucket.flat, _table(bucket.layout, numbering), marks, 0.0)


def axpby_masked(
    to: Bucket, source: Bucket, numbering: Layout, marks: Tensor | None, *, alpha: float, beta: float
) -> None:
    """``axpby`` of the segments that ``marks`` (uint8 per segment of ``numbering``; None: none) marks."""
    if marks is not None and not to.flat.is_meta:
        ops.axpby_masked(to.flat, source.flat, _masked(to.layout, source.layout, numbering), marks, alpha, beta)


def axpby_used(
    to: Bucket, source: Bucket, numbering: Layout, dead: Tensor | None, ctx: Context, *, alpha: float
) -> None:
    """to <- alpha*to + source for the segments that ``dead`` (as ``marks`` above) does not mark."""
    if dead is None or dead.is_meta:
        axpby(to, source, zero_status(ctx, source.layout, "discarded"), alpha=alpha)
    else:
        axpby_masked(to, source, numbering, 1 - dead, alpha=alpha, beta=1.0)


@lru_cache(maxsize=4096)
def filled(layout: Layout) -> Layout:
    """The segments that are not empty: those that slabs have."""
    return layout.select(lambda s: s.numel > 0)


@lru_cache(maxsize=4096)
def shared(layout: Layout, other: Layout) -> Layout:
    """The segments of ``layout`` that ``other`` has too."""
    return layout.select(lambda s: other.position(s) >= 0)


@lru_cache(maxsize=4096)
def _table(to: Layout, source: Layout) -> Tensor:
    rows = [(to.position(s), s.start, s.numel, i) for i, s in enumerate(source.segments) if s.numel]
    return torch.tensor([r for r in rows if r[0] >= 0], dtype=torch.int64).view(-1, 4)


@lru_cache(maxsize=4096)
def _masked(to: Layout, source: Layout, numbering: Layout) -> Tensor:
    rows = [(to.position(s), source.position(s), s.numel, i) for i, s in enumerate(numbering.segments) if s.numel]
    return torch.tensor([r for r in rows if r[0] >= 0 and r[1] >= 0], dtype=torch.int64).view(-1, 4)


@lru_cache(maxsize=4096)
def _betas(beta: float, count: int, dtype: torch.dtype) -> Tensor:
    return torch.full((count,), beta, dtype=dtype)
