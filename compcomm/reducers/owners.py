"""Means by owner in two rounds: what the reducers that split a bucket between the ranks have in common."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..bucket import Bucket, Layout, Segment
from ..collectives import Collective
from ..compressor import Compressor, Payload
from ..reducer import Context, Reducer, Sent
from ..store import Merge, Slot
from ..wire import Flags, Packing, pack_shares
from .exchange import to_all, to_owners
from .route import Route


@dataclass(frozen=True, repr=False)
class Owners(Route, ABC, abstract=True):
    """Every rank owns a share of each parameter; ``server`` says what it does about the loss of its own encoding."""

    server: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        from ..feedback.error_feedback import ErrorFeedback

        if self.server not in (None, False, ErrorFeedback):
            raise ValueError(
                f"{type(self).__name__}({self.compressor!r}, server={self.server!r}): the owner's scheme is "
                f"ErrorFeedback, False (none) or None (chosen)."
            )
        if self.server is ErrorFeedback and self.compressor.delta(1 << 20) is None:
            self.compressor.contractive()  # raises, unless shrinking would help
            raise ValueError(
                f"{type(self).__name__}({self.compressor!r}, server=ErrorFeedback): use "
                f"Contractive({self.compressor!r})."
            )

    @property
    def keeps(self) -> bool:
        """Whether the owner keeps a residual."""
        return bool(self.server)

    def under_feedback(self) -> Reducer:
        from ..feedback.error_feedback import ErrorFeedback

        if self.server is None:
            return replace(self, server=ErrorFeedback)
        return self

    @property
    def stateful(self) -> bool:
        return self.keeps

    def conserves(self, segment: Segment) -> bool:
        return self.keeps or self.exact(segment)

    def slots(self, segment: Segment, world: int) -> Mapping[str, Slot]:
        if not self.keeps or self.exact(segment):
            return {}
        return {"server": Slot(Merge.SHARDED, grain=self.compressor.grain, pending=True)}


class Phases(NamedTuple):
    """What both rounds end with: this rank's payload, all owners' messages ``[W, stride]`` and what scales them."""

    payload: Payload
    gathered: Tensor
    flags: Flags
    scale: float
    undo: Callable[[], None]


def phases(
    c: Compressor,
    x: Bucket,
    server: Bucket | None,
    ctx: Context,
    layout: Layout,
    *,
    add: Bucket | None = None,
    decay: float = 1.0,
    add_scale: float = 1.0,
    status: Tensor | None = None,
) -> Generator[Collective, bool, Phases]:
    """Shares to their owners, means, and the owners' encodings of them to all ranks.

    ``server``: the owners' residual, None where none is kept. ``status``: what is said of the gradient, where ``x`` is
    not it.
    """
    world, packing = ctx.world, pack_shares(c, layout, ctx.world)
    payload = c.encode_(
        x, ctx.rng, add=add, decay=decay, add_scale=add_scale,
        wire=ctx.buffer("sent", packing.nbytes), packing=packing,
    )  # fmt: skip
    if status is not None:
        payload = payload._replace(status=status)
    wires, flags = yield from to_owners(payload, ctx, "received")
    owned = _owned(packing, ctx.rank)
    mean = Bucket(ctx.buffer("mean", owned.numel, torch.float32), owned)
    c.decode_(wires, mean, ctx.rng, packing, scale=1.0 / world, skip=flags.skip, message=ctx.rank)
    noise = ctx.rng._replace(rank=-1 - ctx.rank)  # not that of the first encoding
    held, unscale = (mean, 1.0) if server is None else (server, ctx.unscale)
    second = c.encode_(
        held, noise, add=None if server is None else mean, add_scale=unscale,
        wire=ctx.buffer("owned", max(packing.splits)), packing=packing, message=ctx.rank,
    )  # fmt: skip
    gathered, again = yield from to_all(second, ctx, "gathered")
    flags = flags._replace(bad=flags.bad or again.bad)
    kept = Sent(second, flags.skip if flags.zero else None)
    if server is not None and flags.zero:
        second.decode_add_(server, skip=1 - flags.skip)

    def undo() -> None:
        if server is None:
            return
        # The workers take their payloads back, so the owner keeps neither their mean nor what it sent of it.
        kept.add_(server)
        for s in server.layout.segments:
            at = owned.position(s)
            m = mean.flat[at : at + s.numel] * unscale
            server.flat[s.start : s.stop] -= torch.where(torch.isfinite(m), m, 0.0)  # infinities never entered

    return Phases(payload, gathered, flags, 1.0 / unscale, undo)


@lru_cache(maxsize=4096)
def _owned(packing: Packing, rank: int) -> Layout:
    """The shares of one owner, packed in the order of the segments."""
    rows = [r for r in (*packing.exact, *packing.coded) if r.message == rank]
    rows.sort(key=lambda r: (r.number, r.segment.offset))
    return Layout([r.segment for r in rows], packing.extent).packed()
