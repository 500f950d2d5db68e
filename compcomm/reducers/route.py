"""What the routes share: they carry one compressor's payloads and account for what they failed to send."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass, replace

from torch import Tensor

from ..bucket import Bucket, Segment
from ..compressor import Compressor, Payload
from ..reducer import Context, Reduced, Reducer, Sent
from ..wire import Flags


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
        return self.compressor.delta(segment.numel)

    def contractive(self) -> Reducer:
        return replace(self, compressor=self.compressor.contractive())


def give_back(payload: Payload, flags: Flags, x: Bucket) -> Tensor | None:
    """Returns to ``x`` what was sent of segments whose gradient is zero on every rank, and says which others to skip.

    DDP throws the mean of such a segment away, so what the residual sent for it would be lost.
    """
    if not flags.zero:
        return None
    payload.decode_add_(x, skip=1 - flags.skip)
    return flags.skip


def finish(payload: Payload, flags: Flags, x: Bucket, out: Bucket, ctx: Context) -> Reduced:
    """Settles a flow once ``out`` is written: NaN on a bad step, payloads of dead segments given back."""
    if flags.bad:
        ctx.bad = True
        out.fill_(float("nan"))
    skip = give_back(payload, flags, x)
    return Reduced(Sent(payload, skip), x)
