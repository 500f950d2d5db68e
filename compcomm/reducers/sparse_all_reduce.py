"""SparseAllReduce: top-k whose volume does not grow with the number of workers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..bucket import Bucket, Layout, Segment
from ..compressor import Compressor, ops
from ..ops.reference.interleave import bounds, first_block
from ..reducer import Context, Flow, Reduced, Reducer
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
        deal, rng = _deal(c, layout, world, ctx.seed), ctx.rng
        packing, z = deal.packing, Bucket(ctx.buffer("dealt", deal.whole.numel, torch.float32), deal.whole)
        status = torch.zeros(1 + packing.count, dtype=torch.uint8, device=x.flat.device)
        if not z.flat.is_meta:
            flat, at = (None, None) if add is None else add
            table = deal.rows(x.layout, at)
            ops.deal(x.flat, flat, z.flat.view(torch.uint8), table, status, decay, add_scale, GRAIN)
        payload = c.encode_(z, rng, wire=ctx.buffer("sent", packing.nbytes), packing=packing)._replace(status=status)
        wires, flags = yield from to_owners(payload, ctx, "received")
        owned = deal.owned[ctx.rank]
        mean = Bucket(ctx.buffer("mean", owned.numel, torch.float32), owned)
        c.decode_(wires, mean, rng, packing, scale=1.0 / world, skip=flags.skip, message=ctx.rank)
        second = c.encode_(
            mean, rng._replace(rank=-1 - ctx.rank),
            wire=ctx.buffer("owned", max(packing.splits)), packing=packing, message=ctx.rank,
        )  # fmt: skip
        gathered, again = yield from to_all(second, ctx, "gathered")
        if not z.flat.is_meta:
            c.decode_(gathered.view(1, -1), z, rng, packing, skip=flags.skip, stride=gathered.shape[1])
            c.keep_rows(payload.wire, packing.table(True, deal.whole, seed=ctx.seed), z.flat)
            deal.add(payload.wire, x, -1.0)
            if not accumulate:
                out.fill_(0.0)  # out may be x
            deal.add(gathered.view(-1), out, out_scale, gathered.shape[1])
            if flags.bad or again.bad:
                ctx.bad = True
                out.fill_(float("nan"))
        return Reduced(_Sent(payload.wire, deal), x)


class _Deal:
    """A layout's coded segments dealt out to W owners, exact ones in W contiguous shares."""

    def __init__(self, compressor: Compressor, layout: Layout, world: int, seed: int) -> None:
        self.compressor, self.layout, self.world, self.seed = compressor, layout, world, seed
        self.whole = layout.packed()
        parts: list[list[tuple[int, Segment]]] = [[] for _ in range(world)]
        for number, s in enumerate(self.whole.segments):
            edges = bounds(s.numel, GRAIN, world)
            for rank in range(world):
                share = s.share(rank, world) if compressor.exact(s) else s.piece(edges[rank], edges[rank + 1])
                parts[rank].append((number, share))
        self.packing = Packing(compressor, tuple(map(tuple, parts)), len(layout.segments))
        self.owned = [Layout((s for _, s in part), self.whole.numel).packed() for part in parts]
        self._tables: dict[object, tuple[Tensor, ...]] = {}

    def rows(self, x: Layout, add: Layout | None) -> Tensor:
        """The table that deals ``x`` (or the sum with ``add``) out."""
        if ("out", x, add) not in self._tables:
            rows: list[list[int]] = []
            for number, s in enumerate(self.whole.segments):
                at = [-1 if layout is None else layout.position(s) for layout in (x, add)]
                ways = 1 if self.compressor.exact(s) else self.world
                rows.append([*at, s.numel, 4 * s.start, 0, 0, ways, number])
            self._tables["out", x, add] = (torch.tensor(rows, dtype=torch.int64).view(-1, 8),)
        return self._tables["out", x, add][0]

    def add(self, wire: Tensor, natural: Bucket, scale: float, stride: int | None = None) -> None:
        """natural += scale * what the messages in ``wire`` (end to end, or ``stride`` bytes apart) hold."""
        coded, deals, exact, none = self._back(natural.layout, stride)
        ops.dense_decode(wire.unsqueeze(0), exact, none, natural.flat, scale, True)
        self.compressor.undeal_rows(wire, coded, deals, natural.flat, scale, GRAIN)

    def _back(self, natural: Layout, stride: int | None) -> tuple[Tensor, ...]:
        found = self._tables.get(("back", natural, stride))
        if found is None:
            packing, deals = self.packing, list[tuple[int, int, int]]()
            coded = packing.table(True, self.whole, seed=self.seed, stride=stride).clone()
            for line, row in zip(coded, packing.coded, strict=True):
                s = self.whole.segments[row.number]
                line[0] = natural.position(s)
                deals.append((s.numel, first_block(s.numel, GRAIN, self.world, row.message), self.world))
            exact = packing.table(False, natural, seed=self.seed, stride=stride)
            none = torch.zeros(packing.count, dtype=torch.uint8)
            found = coded, torch.tensor(deals, dtype=torch.int64).view(-1, 3), exact, none
            self._tables["back", natural, stride] = found
        return found


_deal = lru_cache(maxsize=4096)(_Deal)


class _Sent:
    """An ``Update``: of what this rank sent, the part that took effect."""

    def __init__(self, wire: Tensor, deal: _Deal) -> None:
        self._wire, self._deal = wire, deal

    def add_(self, into: Bucket, scale: float = 1.0) -> None:
        self._deal.add(self._wire, into, scale)

    def zero_(self, into: Bucket) -> None:
        sent = self.dense(into.layout)
        into.flat[sent.flat != 0] = 0.0

    def dense(self, layout: Layout) -> Bucket:
        bucket = Bucket(torch.zeros(layout.numel, device=self._wire.device), layout)
        self.add_(bucket)
        return bucket
