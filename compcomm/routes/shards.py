"""Means by owner in two rounds: what the reducers that split a bucket between the ranks have in common."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.collectives import Collective
from ..core.compressor import Compressor, Payload, Received
from ..core.deferred import deferred, either
from ..core.layout import Bucket, Layout, Segment
from ..core.packing import (
    Flags,
    Packing,
    ops,
    pack_shares,
)
from ..core.reducer import Context, Reducer, Sent
from ..core.state import Merge, Slot
from .base import (
    Route,
    adder,
    corrupt,
    hear,
)
from .rounds import to_all, to_owners


@dataclass(frozen=True, repr=False)
class Owners(Route, ABC, abstract=True):
    """Every rank owns a share of each parameter; ``server`` says what it does about the loss of its own encoding."""

    server: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        from ..feedback.base import Scheme

        name = getattr(self.server, "__name__", repr(self.server))
        call = f"{type(self).__name__}({self.compressor!r}, server={name})"
        if self.server is None or self.server is False:
            return
        if not (isinstance(self.server, type) and issubclass(self.server, Scheme) and self.server.owner is self.server):
            raise ValueError(
                f"{call}: the owner's scheme is ErrorFeedback, EF21 (inside EF21), False (none) or None (chosen)."
            )
        needed = self.compressor.contractive()  # raises where it is none and shrinking would not help
        if needed is not self.compressor:
            raise ValueError(f"{call}: use {needed!r}.")

    @property
    def keeps(self) -> bool:
        """Whether the owner keeps a residual."""
        return bool(self.server)

    @property
    def weighs(self) -> bool:
        return True

    def under_feedback(self, scheme: type[Reducer] | None) -> Reducer:
        if scheme is not None and self.server is None:
            return replace(self, server=scheme)
        if self.server is False and scheme is not None and getattr(scheme, "integrates", False):
            raise ValueError(
                f"{self!r} inside a scheme that sums over the steps: what the owner loses would stay lost, and the "
                f"mean drift away from the ranks' estimates. Leave server= out."
            )
        if self.server and self.server is not scheme and (scheme or self.server.integrates):
            here = f"inside a scheme whose owners use {scheme.__name__}" if scheme else "outside EF21 or EControl"
            raise ValueError(f"{self!r} {here}: the owner follows its workers. Leave server= out: it is chosen.")
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
        status=ctx.buffer("sent status", 1 + packing.count),
    )  # fmt: skip
    if status is not None:
        payload = payload._replace(status=status)
    hear(payload.status, ctx)
    wires, flags = yield from to_owners(payload, ctx, "received")
    owned = _owned(packing, ctx.rank)
    mean = Bucket(ctx.buffer("mean", owned.numel, torch.float32), owned)
    decode = adder(c, wires, mean, ctx, packing, 1.0 / world, flags.skip, message=ctx.rank)
    received = _recoded(c, wires, mean, ctx, packing, flags.skip)
    if received is None:
        decode(1.0, False)
    noise = ctx.rng._replace(rank=-1 - ctx.rank)  # not that of the first encoding
    held, unscale = (mean, 1.0) if server is None else (server, ctx.unscale)
    rested = None if server is None else packing.lines(server.layout, message=ctx.rank)
    empty = ctx.buffer("rows that rested", packing.splits[ctx.rank] if rested is not None else 0)
    if server is not None and rested is not None:
        ops.zero_rows_mark(server.flat, None, empty, rested.table)
    second = c.encode_(
        held, noise, add=None if server is None else mean, add_scale=unscale,
        wire=ctx.buffer("owned", max(packing.splits)), packing=packing, message=ctx.rank, received=received,
        status=ctx.buffer("owned status", 1 + packing.count),
    )  # fmt: skip
    if (c.sparse or c.variable) and deferred(wires):  # what the owner alone could not decode, all must hear of
        second.status[:1] |= corrupt(mean.flat, ctx)
    gathered, again = yield from to_all(second, ctx, "gathered")
    flags = flags._replace(bad=either(flags.bad, again.bad))
    kept = Sent(second, flags.skip if flags.zero else None)
    if server is not None and flags.zero:
        second.decode_add_(server, skip=1 - flags.skip)

    def undo() -> None:
        if server is None:
            return
        # The workers take their payloads back, so the owner keeps neither their mean nor what it sent of it.
        if received is not None:
            decode(1.0, False)
        kept.add_(server)
        for s in server.layout.segments:
            at = owned.position(s)
            m = mean.flat[at : at + s.numel] * unscale
            server.flat[s.start : s.stop] -= torch.where(torch.isfinite(m), m, 0.0)  # infinities never entered
        if rested is not None:  # else what rounding leaves of m - c + c - m would move a row of zeros for ever
            ops.zero_rows_clear(server.flat, empty, rested.table)

    return Phases(payload, gathered, flags, 1.0 / unscale, undo)


def _recoded(
    c: Compressor, wires: Tensor, mean: Bucket, ctx: Context, packing: Packing, skip: Tensor
) -> Received | None:
    """What the owner's encoder decodes by itself, where the mean of coded rows need not be in memory: the exact rows'
    is written here. None: all of it is to be decoded first."""
    if not c.recodes or packing.has_lines or ctx.weights is not None or not deferred(wires):
        return None
    exact, coded = (packing.table(kind, mean.layout, seed=ctx.seed, message=ctx.rank) for kind in (False, True))
    if len(exact):
        torch.ops.compcomm.dense_decode(wires, exact, skip, mean.flat, 1.0 / ctx.world, False)
    return Received(wires, coded, skip, 1.0 / ctx.world)


@lru_cache(maxsize=4096)
def _owned(packing: Packing, rank: int) -> Layout:
    """The shares of one owner, packed in the order of the segments."""
    rows = [r for r in (*packing.exact, *packing.coded) if r.message == rank]
    rows.sort(key=lambda r: (r.number, r.segment.offset))
    return Layout([r.segment for r in rows], packing.extent).packed()
