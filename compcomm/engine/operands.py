"""A host's tensors and a reducer's: buckets in fp32 and row-major order, copied only where they are not so already."""

from __future__ import annotations

from collections.abc import Container

import torch

from ..core.context import Context
from ..core.deferred import deferred
from ..core.layout import Bucket
from ..core.spans import copy_
from ..core.transport import Transport
from .jobs import Job


def accept(source: Bucket, target: Bucket, transport: Transport, known: Container[str] | None, rows: bool) -> None:
    """Whether a host may give these; asked once for all buckets of their layouts. ``known``: the parameters' names,
    where they have any. ``rows``: whether each rank wants its own row.

    Raises:
        ValueError: what ``Session.submit`` says.
    """
    rank, world, device = transport.rank, transport.world, transport.device
    for what, bucket in (("source", source), ("target", target)):
        flat, numel = bucket.flat, bucket.layout.numel
        if flat.dim() != 1 or not flat.is_contiguous() or flat.numel() < numel:
            raise ValueError(
                f"submit({what}=...): its tensor has shape {tuple(flat.shape)}, and its layout {numel} elements. Give "
                f"a flat, contiguous tensor of at least as many; for a buffer of one row, rows(world)[rank].packed()."
            )
        if flat.device.type != device.type:
            raise ValueError(
                f"submit({what}=...): its tensor lies on {flat.device}, and this session works on {device}."
            )
        if not flat.is_floating_point():
            raise ValueError(f"submit({what}=...): means are floating-point numbers, and its tensor is {flat.dtype}.")
    strange = [s.name for s in source.layout.segments if known is not None and s.name not in known]
    if strange:
        raise ValueError(
            f"submit: {strange[0]!r} is none of the parameters that the session was made for, so its state would be in "
            f"no checkpoint. Name it there, or correct the layout."
        )
    wanted = source.layout.equal_rows(world)[rank] if rows else source.layout
    lacking = [s for s in wanted.segments if s.numel and target.layout.position(s) < 0]
    if lacking:
        part = f"of row {rank}, this rank's: use layout.rows({world})[{rank}]" if rows else (
            "of the source: use its layout. (Where each rank wants a row of the mean alone, Session(..., rows=True).)"
        )  # fmt: skip
        raise ValueError(
            f"submit: the target lacks elements {lacking[0].offset} to {lacking[0].offset + lacking[0].numel} of "
            f"{lacking[0].name!r}, {part}"
        )


def operands(job: Job, ctx: Context, native: bool) -> tuple[Bucket, Bucket]:
    """The bucket and where its mean goes, as the reducer takes them: the host's own tensors where it can, else
    copies in fp32 and row-major order."""
    given, wanted, reducer = job.source.x, job.target.out, job.step.reducer
    layout, x = given.layout.row_major, given
    in_place = wanted.flat is given.flat
    half = given.flat.dtype in (torch.bfloat16, torch.float16) and wanted.flat.dtype == given.flat.dtype
    half = half and reducer.traits.half and deferred(given.flat)
    if native and (in_place or layout is given.layout):
        pass  # a sum takes elements as they lie
    elif layout is not given.layout:
        x = Bucket(ctx.buffer("row-major", given.flat.numel(), torch.float32, brief=True), layout)
        x.rearrange_(given)
    elif not native and not half and given.flat.dtype != torch.float32:
        x = Bucket(ctx.buffer("fp32", given.flat.numel(), torch.float32, brief=True), layout)
        x.flat.copy_(given.flat)
    if x is not given and given.flat.dtype.itemsize < x.flat.dtype.itemsize:
        ctx.dtype = given.flat.dtype
    if in_place:
        return x, x if wanted.layout is given.layout else Bucket(x.flat, wanted.layout.row_major)
    order = wanted.layout.row_major
    if order is wanted.layout and wanted.flat.dtype == x.flat.dtype:
        return x, wanted
    out = Bucket(ctx.buffer("out", wanted.flat.numel(), x.flat.dtype, brief=True), order)
    if job.target.accumulate:
        out.rearrange_(wanted)
    return x, out


def write(mean: Bucket, wanted: Bucket) -> None:
    """Copies a mean to where the host wants it; padding keeps what the host has there."""
    if wanted.layout.covers or mean.layout is not wanted.layout:
        wanted.rearrange_(mean)
        return
    copy_(wanted, mean)
