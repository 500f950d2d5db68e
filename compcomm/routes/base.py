"""What the routes share: they carry one compressor's payloads and account for what they failed to send."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..compressors.contractive import contractive
from ..core.compressor import Compressor, Payload
from ..core.context import Context
from ..core.deferred import (
    DeferredBool,
    DeferredError,
    deferred,
    either,
    fill_nan_where,
)
from ..core.header import Flags
from ..core.layout import Bucket, Segment
from ..core.packing import Packing
from ..core.reducer import Reduced, Reducer, Resolving, Sent, Update
from ..core.source import Source, Target
from ..core.traits import Promises
from ..ops.gpu import corruption


@dataclass(frozen=True, repr=False)
class Route(Reducer, ABC, abstract=True):
    """A reducer that carries ``compressor``'s payloads."""

    compressor: Compressor

    def __post_init__(self) -> None:
        if not isinstance(self.compressor, Compressor):
            raise TypeError(f"{type(self).__name__}({self.compressor!r}): a compressor is needed, such as TopK(0.01).")

    def exact(self, segment: Segment) -> bool:
        return self.compressor.exact(segment)

    def promises(self, segment: Segment) -> Promises:
        if self.exact(segment):  # it may be smaller than what a compressor takes
            return Promises(1.0)
        return Promises(self.compressor.of(segment).delta(segment.numel))

    def contractive(self, scheme: str) -> Reducer:
        return replace(self, compressor=contractive(self.compressor, scheme))

    def resolve(self, to: Resolving) -> Reducer:
        """Where rows are wanted alone, the route of rows: the others' would be bytes for nothing."""
        return to.part(self.compressor) if to.rows else self


class Delivery:
    """The end of a bucket's way: the mean is written, bad steps and parameters without a gradient are dealt with.

    To use one, give ``decode``; set ``flags`` when the headers are there, then ``finish``.
    """

    flags: Flags

    def __init__(self, source: Source, target: Target, ctx: Context) -> None:
        self.source, self.target, self.ctx = source, target, ctx
        self.rng, self.weights = ctx.rng, ctx.weights  # now: a scheme may change them before this is undone

    def decode(self, sign: float, accumulate: bool) -> None:
        """out = (out if accumulate) + sign * scale * the mean."""
        raise NotImplementedError

    def finish(self, sent: Update) -> Reduced:
        """What ``reduce`` returns once ``out`` is written: NaN there on a bad step."""
        bad, accumulate = self.flags.bad, self.target.accumulate
        self.ctx.bad = either(self.ctx.bad, bad)
        if not accumulate:
            fill_nan_where(self.target.out, bad)
        skipped = self.flags.skip if self.flags.zero else None
        if accumulate:
            return Reduced(sent, self.source.x, self.on_rollback, bad=bad, unused=skipped)
        return Reduced(sent, self.source.x, bad=bad, unused=skipped)

    def on_rollback(self) -> None:
        """Takes the mean out of an ``out`` that accumulates."""
        self.decode(-1.0, True)


class RoundTrip(Delivery):
    """A bucket's way through a route: encoded, exchanged (``rounds.to_all``, ``to_owners``), decoded, accounted for.

    ``wires``: the messages ``[W, bytes]`` that the mean is decoded from, the ``message`` of ``packing`` alone where it
    is given. ``scale``: what makes the mean of their sum.
    """

    wires: Tensor

    def __init__(
        self, compressor: Compressor, packing: Packing, source: Source, target: Target, ctx: Context,
        message: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(source, target, ctx)
        self.compressor, self.packing, self.message = compressor, packing, message
        # A scheme's weights replace the mean by a weighted sum.
        self.scale = target.scale / ctx.world if self.weights is None else target.scale

    def encode(self, hints: Mapping[str, Tensor] | None = None, status: Tensor | None = None) -> Payload:
        """This rank's payload; ``status``: what is said of the gradient, where the source's ``x`` is not it."""
        ctx, packing = self.ctx, self.packing
        payload = self.compressor.encode_(
            self.source, self.rng, hints=hints, wire=ctx.buffer("sent", packing.nbytes), packing=packing,
            status=ctx.buffer("sent status", 1 + packing.count),
        )  # fmt: skip
        if status is not None:
            payload = payload._replace(status=status)
        override_status(payload.status, ctx)
        return payload

    def decode(self, sign: float, accumulate: bool) -> None:
        self.compressor.decode_(
            self.wires, Target(self.target.out, sign * self.scale, accumulate), self.rng, self.packing,
            skip=self.flags.skip, message=self.message, weights=self.weights,
        )  # fmt: skip

    def deliver(self, payload: Payload) -> Reduced:
        """Decodes the mean, gives back what was sent of parameters without a gradient, and finishes."""
        self.decode(1.0, self.target.accumulate)
        out = self.target.out.flat
        if (self.compressor.sparse or self.compressor.variable) and deferred(out):
            self.flags = self.flags._replace(bad=either(self.flags.bad, corrupt(out, self.ctx)))
        return self.finish(Sent(payload, give_back(payload, self.flags, self.source.x)))


def override_status(status: Tensor, ctx: Context) -> None:
    """Puts what a scheme says of the gradient in place of what the kernels saw, where they coded something else."""
    if ctx.status is not None:
        status[:1] |= ctx.status[:1]
        status[1:] = ctx.status[1:]


def give_back(payload: Payload, flags: Flags, x: Bucket) -> Tensor | None:
    """Returns to ``x`` what was sent of segments whose gradient is zero on every rank, and says which others to skip.

    DDP throws the mean of such a segment away, so what the residual sent for it would be lost.
    """
    if not flags.zero:
        return None
    payload.decode_add_(x, skip=1 - flags.skip)
    return flags.skip


def corrupt(out: Tensor, ctx: Context) -> DeferredBool:
    """Whether kernels found a message that they could not decode, so that ``out`` is not the mean."""
    sticky, explain = corruption(out.device)
    word = sticky.clone()
    sticky.zero_()  # another step, or attachment, begins without it
    ctx.faults.append(DeferredError(word, explain))
    return (word != 0).to(torch.uint8)
