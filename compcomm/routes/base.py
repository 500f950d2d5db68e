"""What the routes share: they carry one compressor's payloads and account for what they failed to send."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.compressor import Compressor, Payload
from ..core.deferred import (
    Fault,
    Truth,
    deferred,
    either,
    poison,
)
from ..core.layout import Bucket, Segment
from ..core.packing import Flags, Packing
from ..core.reducer import (
    Context,
    Reduced,
    Reducer,
    Sent,
    Update,
)
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

    def delta(self, segment: Segment) -> float | None:
        return self.compressor.of(segment).delta(segment.numel)

    def contractive(self, scheme: str) -> Reducer:
        return replace(self, compressor=self.compressor.contractive(scheme))


def give_back(payload: Payload, flags: Flags, x: Bucket) -> Tensor | None:
    """Returns to ``x`` what was sent of segments whose gradient is zero on every rank, and says which others to skip.

    DDP throws the mean of such a segment away, so what the residual sent for it would be lost.
    """
    if not flags.zero:
        return None
    payload.decode_add_(x, skip=1 - flags.skip)
    return flags.skip


def hear(status: Tensor, ctx: Context) -> None:
    """Puts what a scheme says of the gradient in place of what the kernels saw, where they coded something else."""
    if ctx.status is not None:
        status[:1] |= ctx.status[:1]
        status[1:] = ctx.status[1:]


def finish(
    payload: Payload, flags: Flags, x: Bucket, out: Bucket, ctx: Context, decode: Callable[[float, bool], None],
    accumulate: bool,
) -> Reduced:  # fmt: skip
    """The mean by ``decode(sign, accumulate)``, NaN on a bad step, and the payloads of dead segments given back."""
    decode(1.0, accumulate)
    if (payload.compressor.sparse or payload.compressor.variable) and deferred(out.flat):
        flags = flags._replace(bad=either(flags.bad, corrupt(out.flat, ctx)))
    skip = give_back(payload, flags, x)
    return settled(Sent(payload, skip), flags, x, out, ctx, decode, accumulate)


def corrupt(out: Tensor, ctx: Context) -> Truth:
    """Whether kernels found a message that they could not decode, so that ``out`` is not the mean."""
    sticky, explain = corruption(out.device)
    word = sticky.clone()
    sticky.zero_()  # another step, or attachment, begins without it
    ctx.faults.append(Fault(word, explain))
    return (word != 0).to(torch.uint8)


def settled(
    sent: Update, flags: Flags, x: Bucket, out: Bucket, ctx: Context, decode: Callable[[float, bool], None],
    accumulate: bool,
) -> Reduced:  # fmt: skip
    """What ``reduce`` returns once ``out`` is written."""
    ctx.bad = either(ctx.bad, flags.bad)
    if not accumulate:
        poison(out, flags.bad)

    def undo() -> None:
        if accumulate:
            decode(-1.0, True)

    return Reduced(sent, x, undo, bad=flags.bad, dead=flags.skip if flags.zero else None)


def adder(
    c: Compressor, wires: Tensor, out: Bucket, ctx: Context, packing: Packing, scale: float, skip: Tensor,
    message: int | None = None,
) -> Callable[[float, bool], None]:  # fmt: skip
    """``decode(sign, accumulate)``: out = (out if accumulate) + sign * scale * the sum of all ranks' messages, weighted
    where a scheme gives weights."""
    rng, weights = ctx.rng, ctx.weights
    if weights is not None:
        scale *= ctx.world

    def decode(sign: float, accumulate: bool) -> None:
        c.decode_(
            wires, out, rng, packing, scale=sign * scale, skip=skip, accumulate=accumulate, message=message,
            weights=weights,
        )  # fmt: skip

    return decode
