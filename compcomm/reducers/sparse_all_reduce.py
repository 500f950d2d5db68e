"""SparseAllReduce: top-k whose volume does not grow with the number of workers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..bucket import Bucket, Layout, Segment
from ..compressor import Compressor, Payload, ops
from ..ops.reference.interleave import bounds
from ..reducer import Context, Flow, Reduced, Reducer
from ..scratch import scratch
from ..store import State
from ..wire import Packing
from .exchange import to_all, to_owners
from .route import Route
from .two_phase import TwoPhase

GRAIN = 16
"""Elements per card that is dealt: a cache line."""


@dataclass(frozen=True, repr=False)
class SparseAllReduce(Route):
    """Every rank sends each owner the largest elements of its share; owners sum, select again, and all gather that.

    m_j = (1/W) sum over the ranks that sent j;  out = C(m), one share per owner. With k elements kept of d, a rank
    sends (W-1)/W k elements to owners and (W-1)/W k to all: 2 (W-1)/W times 48 bits per element, 3 (W-1)/W k words of
    32 bits whatever W is, and what rounding up in every share, counts and headers add (``benchmarks/volume.py`` counts
    it). ``AllGather`` sends (W-1) k elements, but loses nothing after the ranks' own selections.

    Blocks of 16 elements are dealt out to the owners in turn, so that every share looks like the whole: the k/W largest
    of each share are nearly the k largest of all, also where the large ones lie together (embeddings). Each owner's
    share of a parameter sends at least one element, so parameters with fewer than W/density elements send more than k.

    What a rank sent and the second selection dropped goes back to its error: out sums exactly what the ranks count as
    sent, without a server residual. A single rank may get nothing through where others are larger, so it is no
    contraction rank by rank (delta is None); error feedback accepts it, and conserves. For sharded hosts the first
    half, which needs no second selection. No state: exact selection is as fast without the last threshold as with it.

    Source: Li and Hoefler 2022 (arXiv:2201.07598, Ok-Topk), sections 3.1 to 3.3: split, sum at owners, select again,
    gather, and errors that keep what did not take effect. Ours deals blocks instead of moving the regions' borders, and
    selects exactly instead of by thresholds that are reused, so every message has a fixed length.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        c = self.compressor
        if not c.selective:
            raise ValueError(
                f"SparseAllReduce({c!r}): needs a compressor that selects elements and sends them as they are. Use "
                f"SparseAllReduce(TopK(ratio=0.01)), or TwoPhase({c!r})."
            )
        if getattr(c, "k", None) is not None:
            raise ValueError(
                f"SparseAllReduce({c!r}): k counts elements per parameter, and each owner has a share of it. Use ratio."
            )

    def delta(self, segment: Segment) -> float | None:
        return 1.0 if self.exact(segment) else None

    def contractive(self) -> Reducer:
        return self

    def reduce(
        self,
        x: Bucket,
        out: Bucket,
        state: State,
        ctx: Context,
        *,
        add: Bucket | None = None,
        decay: float = 1.0,
        add_scale: float = 1.0,
        out_scale: float = 1.0,
        accumulate: bool = False,
    ) -> Flow:
        layout, c, world = (add or x).layout, self.compressor, ctx.world
        if out.layout != layout and not all(out.layout.position(s) >= 0 for s in layout.segments):
            return (
                yield from TwoPhase(c, server=False).reduce(
                    x, out, state, ctx,
                    add=add, decay=decay, add_scale=add_scale, out_scale=out_scale, accumulate=accumulate,
                )
            )  # fmt: skip
        deal = _deal(c, layout, world)
        packing = deal.packing
        held = deal.held(x.layout)
        z = deal.forward(x, Bucket(ctx.buffer("dealt", held.numel, torch.float32), held))
        g = None
        if add is not None:
            g = deal.forward(add, Bucket(ctx.buffer("dealt add", deal.whole.numel, torch.float32), deal.whole))
        payload = c.encode_(
            z, ctx.rng, add=g, decay=decay, add_scale=add_scale,
            wire=ctx.buffer("sent", packing.nbytes), packing=packing,
        )  # fmt: skip
        wires, flags = yield from to_owners(payload, ctx, "received")
        owned = deal.owned[ctx.rank]
        mean = Bucket(ctx.buffer("mean", owned.numel, torch.float32), owned)
        c.decode_(wires, mean, ctx.rng, packing, scale=1.0 / world, skip=flags.skip, message=ctx.rank)
        second = c.encode_(
            mean, ctx.rng._replace(rank=-1 - ctx.rank),
            wire=ctx.buffer("owned", max(packing.splits)), packing=packing, message=ctx.rank,
        )  # fmt: skip
        gathered, again = yield from to_all(second, ctx, "gathered")
        total = Bucket(ctx.buffer("total", deal.whole.numel, torch.float32), deal.whole)
        c.decode_(
            gathered.view(1, -1), total, ctx.rng, packing, skip=flags.skip, stride=gathered.shape[1]
        )  # fmt: skip
        if not total.flat.is_meta:
            payload.decode_add_(z)  # z is y again, and then without what took effect
            c.keep_rows(payload.wire, packing.table(True, deal.whole, seed=ctx.seed), total.flat)
            payload.decode_add_(z, -1.0)
            deal.inverse(z, x)
            deal.inverse(total, out, out_scale, accumulate)  # out may be x
            if flags.bad or again.bad:
                ctx.bad = True
                out.fill_(float("nan"))
        return Reduced(_Sent(payload, deal), x)


class _Deal:
    """A layout's coded segments dealt out to W owners, exact ones in W contiguous shares."""

    def __init__(self, compressor: Compressor, layout: Layout, world: int) -> None:
        self.world = world
        self.whole = layout.packed()
        self._held: dict[Layout, Layout] = {}
        self._exact = {s.name for s in layout.segments if compressor.exact(s)}
        parts: list[list[tuple[int, Segment]]] = [[] for _ in range(world)]
        for number, s in enumerate(self.whole.segments):
            edges = bounds(s.numel, GRAIN, world)
            for rank in range(world):
                share = s.share(rank, world) if compressor.exact(s) else s.piece(edges[rank], edges[rank + 1])
                parts[rank].append((number, share))
        self.packing = Packing(compressor, tuple(map(tuple, parts)), len(layout.segments))
        self.owned = [Layout((s for _, s in part), self.whole.numel).packed() for part in parts]
        self._tables: dict[tuple[Layout, Layout], Tensor] = {}

    def _table(self, natural: Layout, dealt: Layout) -> Tensor:
        table = self._tables.get((natural, dealt))
        if table is None:
            rows = [
                [natural.position(s), s.start, s.numel, 1 if s.name in self._exact else self.world]
                for s in dealt.segments
            ]
            table = self._tables[natural, dealt] = torch.tensor(rows, dtype=torch.int64).view(-1, 4)
        return table

    def held(self, x: Layout) -> Layout:
        """What ``x`` has of the segments, packed: a residual has no exact ones."""
        found = self._held.get(x)
        if found is None:
            found = self._held[x] = self.whole.select(lambda s: x.position(s) >= 0).packed()
        return found

    def forward(self, natural: Bucket, dealt: Bucket) -> Bucket:
        """``dealt``, filled from ``natural``."""
        if not dealt.flat.is_meta:
            table = self._table(natural.layout, dealt.layout)
            ops.interleave(natural.flat, table, dealt.flat, GRAIN, 1.0, False, False)
        return dealt

    def inverse(self, dealt: Bucket, natural: Bucket, scale: float = 1.0, accumulate: bool = False) -> None:
        """natural (+)= scale * dealt, for the segments that ``natural`` has."""
        table = self._table(natural.layout, dealt.layout)
        ops.interleave(dealt.flat, table, natural.flat, GRAIN, scale, accumulate, True)


_deal = lru_cache(maxsize=4096)(_Deal)


class _Sent:
    """An ``Update``: of what this rank sent, the part that took effect."""

    def __init__(self, payload: Payload, deal: _Deal) -> None:
        self.payload, self.deal = payload, deal

    def _dealt(self) -> Bucket:
        layout = self.deal.whole
        whole = Bucket(scratch("sparse all-reduce", layout.numel, device=self.payload.wire.device).zero_(), layout)
        self.payload.decode_add_(whole)
        return whole

    def add_(self, into: Bucket, scale: float = 1.0) -> None:
        self.deal.inverse(self._dealt(), into, scale, True)

    def zero_(self, into: Bucket) -> None:
        sent = self.dense(into.layout)
        into.flat[sent.flat != 0] = 0.0

    def dense(self, layout: Layout) -> Bucket:
        bucket = Bucket(torch.zeros(layout.numel, device=self.payload.wire.device), layout)
        self.add_(bucket)
        return bucket
