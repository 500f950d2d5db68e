"""Means by owner in two rounds: what the reducers that split a bucket between the ranks have in common."""

from __future__ import annotations

from abc import ABC
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from ..compressors.contractive import contractive
from ..core.collectives import Collective
from ..core.compressor import Compressor, Payload
from ..core.context import Context
from ..core.deferred import deferred, either
from ..core.layout import Bucket, Layout, Segment
from ..core.packing import Packing, ops
from ..core.reducer import Reduced, Reducer, Resolving, Sent, Update
from ..core.rows import Received
from ..core.source import Source, Target
from ..core.state import Merge, Slot
from ..core.traits import Promises, Traits
from .base import RoundTrip, Route, corrupt
from .rounds import to_all, to_owners


@dataclass(frozen=True, repr=False)
class Owners(Route, ABC, abstract=True):
    """Every rank owns a share of each parameter; ``server`` says what it does about the loss of its own encoding."""

    server: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        name = getattr(self.server, "__name__", repr(self.server))
        call = f"{type(self).__name__}({self.compressor!r}, server={name})"
        if self.server is None or self.server is False:
            return
        if not (isinstance(self.server, type) and getattr(self.server, "owner", None) is self.server):
            raise ValueError(
                f"{call}: the owner's scheme is ErrorFeedback, EF21 (inside EF21), False (none) or None (chosen)."
            )
        needed = contractive(self.compressor)  # raises where it is none and shrinking would not help
        if needed is not self.compressor:
            raise ValueError(f"{call}: use {needed!r}.")

    @property
    def keeps(self) -> bool:
        """Whether the owner keeps a residual."""
        return bool(self.server)

    @cached_property
    def traits(self) -> Traits:
        return super().traits._replace(weights=True, stateful=self.keeps)

    def resolve(self, to: Resolving) -> Reducer:
        if to.rows:  # nothing is coded twice
            return super().resolve(to)
        scheme = to.scheme
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

    def promises(self, segment: Segment) -> Promises:
        return super().promises(segment)._replace(conserves=self.keeps or self.exact(segment))

    def slots(self, segment: Segment, world: int) -> Mapping[str, Slot]:
        if not self.keeps or self.exact(segment):
            return {}
        return {"server": Slot(Merge.SHARDED, alignment=self.compressor.alignment, pending=True)}


class TwoRounds(RoundTrip):
    """Shares to their owners, means, and the owners' encodings of them to all ranks.

    ``server``: the owners' residual, None where none is kept. Owners' messages are ``wires``, one ``[W, stride]``.
    """

    server: Bucket | None = None

    def run(self, server: Bucket | None, status: Tensor | None = None) -> Generator[Collective, bool, Payload]:
        """Both rounds; this rank's first payload. ``status``: what is said of the gradient, where ``x`` is not it."""
        c, ctx, packing = self.compressor, self.ctx, self.packing
        payload = self.encode(status=status)
        received, self.flags = yield from to_owners(payload, ctx, "received")
        self.owned = owned = _owned(packing, ctx.rank)
        self.mean = mean = Bucket(ctx.buffer("mean", owned.numel, torch.float32), owned)
        self.received, self.server = received, server
        self.unscale = 1.0 if server is None else ctx.unscale
        self.coded = _reencoded(c, received, mean, ctx, packing, self.flags.skip)
        if self.coded is None:
            self._decode_mean()
        # Rows of the residual that are zero stay so, also where the step is undone: else what rounding leaves of
        # m - c + c - m would move them for ever.
        self.rested = None if server is None else packing.lines(server.layout, message=ctx.rank)
        self.empty = ctx.buffer("rows that rested", packing.splits[ctx.rank] if self.rested is not None else 0)
        if server is not None and self.rested is not None:
            ops.zero_rows_mark(server.flat, None, self.empty, self.rested.table)
        noise = self.rng._replace(rank=-1 - ctx.rank)  # not that of the first encoding
        second = c.encode_(
            Source(mean) if server is None else Source(server, mean, add_scale=self.unscale), noise,
            wire=ctx.buffer("owned", max(packing.splits)), packing=packing, message=ctx.rank, received=self.coded,
            status=ctx.buffer("owned status", 1 + packing.count),
        )  # fmt: skip
        if (c.sparse or c.variable) and deferred(received):  # what the owner alone could not decode, all must hear of
            second.status[:1] |= corrupt(mean.flat, ctx)
        self.wires, again = yield from to_all(second, ctx, "gathered")
        flags = self.flags = self.flags._replace(bad=either(self.flags.bad, again.bad))
        self.kept = Sent(second, flags.skip if flags.zero else None)
        if server is not None and flags.zero:
            second.decode_add_(server, skip=1 - flags.skip)
        return payload

    def _decode_mean(self) -> None:
        """The mean of this rank's share, from what all ranks sent for it."""
        scale = 1.0 if self.weights is not None else 1.0 / self.ctx.world
        self.compressor.decode_(
            self.received, Target(self.mean, scale), self.rng, self.packing,
            skip=self.flags.skip, message=self.ctx.rank, weights=self.weights,
        )  # fmt: skip

    @property
    def factor(self) -> float:
        """What makes the mean of the owners' messages, which hold unscaled numbers where a residual is added."""
        return self.target.scale / self.unscale

    def decode(self, sign: float, accumulate: bool) -> None:
        self.compressor.decode_(
            self.wires.view(1, -1), Target(self.target.out, sign * self.factor, accumulate), self.rng, self.packing,
            skip=self.flags.skip, stride=self.wires.shape[1],
        )  # fmt: skip

    def finish(self, sent: Update) -> Reduced:
        found = super().finish(sent)
        return found if self.server is None else found.after(self._restore)

    def _restore(self) -> None:
        """The workers take their payloads back, so the owner keeps neither their mean nor what it sent of it."""
        server = self.server
        assert server is not None
        if self.coded is not None:
            self._decode_mean()
        self.kept.add_(server)
        for s in server.layout.segments:
            at = self.owned.position(s)
            m = self.mean.flat[at : at + s.numel] * self.unscale
            server.flat[s.start : s.stop] -= torch.where(torch.isfinite(m), m, 0.0)  # infinities never entered
        if self.rested is not None:
            ops.zero_rows_clear(server.flat, self.empty, self.rested.table)


def _reencoded(
    c: Compressor, wires: Tensor, mean: Bucket, ctx: Context, packing: Packing, skip: Tensor
) -> Received | None:
    """What the owner's encoder decodes by itself, where the mean of coded rows need not be in memory: the exact rows'
    is written here. None: all of it is to be decoded first."""
    if not deferred(wires) or packing.has_lines or ctx.weights is not None or not getattr(c, "reencodes", False):
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
