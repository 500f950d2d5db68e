"""SparseAllReduce: top-k whose volume does not grow with the number of workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..core.compressor import Compressor, ops
from ..core.context import Context
from ..core.layout import Bucket, Layout, Segment
from ..core.packing import pack_shares
from ..core.reducer import Flow
from ..core.source import Source, Target
from ..core.spans import clear_
from ..core.state import Slot, State
from ..ops.reference.interleave import permuted_blocks, ways_of
from .shards import Owners, TwoRounds

GRAIN = 16
"""Elements per block that is moved: a cache line."""


@dataclass(frozen=True, repr=False)
class SparseAllReduce(Owners):
    """Each rank sends every owner the largest elements of its share; owners sum, select again, and all gather that.

    ``TwoPhase`` for selections, over shares that look alike. With k elements kept of d, a rank sends (W-1)/W k elements
    to owners and (W-1)/W k to all: 2 (W-1)/W times 48 bits per element, 3 (W-1)/W k words of 32 bits whatever W is, and
    what rounding up in every share, counts and headers add (``benchmarks/volume.py`` counts it). ``AllGather`` sends
    (W-1) k elements, but loses nothing after the ranks' own selections.

    Blocks of 16 elements of a parameter are permuted before it is cut into shares, so that every share has
    a part of every region: the k/W largest of each share are nearly the k largest of all, also where the large ones lie
    together (embeddings), which ``TwoPhase`` leaves to one owner's quota. The order depends on the size alone. Each
    share sends at least one element, so parameters with fewer than W/density elements send more than k.

    ``server`` and state as in ``TwoPhase``: under feedback the owner keeps what its selection dropped (slot "server",
    in permuted order). Giving that back to the ranks instead, as Ok-Topk does, would starve: what cancels between the
    ranks comes back larger in each step, until nothing else is selected.

    Source: Li and Hoefler 2022 (arXiv:2201.07598, Ok-Topk), section 3.1: split, sum at owners, select again, gather.
    Ours permutes blocks instead of moving the regions' borders, and selects exactly instead of by reused thresholds, so
    that every message has a fixed length (``benchmarks/results/kernels.json``: a cold selection takes no longer).
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        c = self.compressor
        if not getattr(c, "sends_values", False):
            raise ValueError(
                f"SparseAllReduce({c!r}): needs a compressor that selects elements and sends them as they are. Use "
                f"SparseAllReduce(TopK(ratio=0.01)), or TwoPhase({c!r})."
            )
        if getattr(c, "k", None) is not None:
            raise ValueError(
                f"SparseAllReduce({c!r}): k counts elements per parameter, and each owner has a share of it. Use ratio."
            )

    def slots(self, segment: Segment, world: int) -> Mapping[str, Slot]:
        return {name: replace(slot, order=_natural) for name, slot in super().slots(segment, world).items()}

    def reduce(self, source: Source, target: Target, state: State, ctx: Context) -> Flow:
        layout, c = source.layout, self.compressor
        permutation = _permutation(c, layout, ctx.world, ctx.seed)
        z = Bucket(ctx.buffer("permuted", permutation.whole.numel, torch.float32), permutation.whole)
        status = ctx.buffer("permuted status", 1 + len(layout.segments)).zero_()
        real = not z.flat.is_meta
        if real:
            (x, add, decay, add_scale), table = source, permutation.rows(*source.layouts)
            flat = None if add is None else add.flat
            ops.permute_blocks(x.flat, flat, z.flat.view(torch.uint8), table, status, decay, add_scale, GRAIN)
        rounds = _PermutedRounds(c, permutation.packing, Source(z), target, ctx)
        rounds.permutation = permutation
        payload = yield from rounds.run(state["server"] if self.keeps else None, status)
        sent = _Sent(payload.wire, permutation, rounds.flags.skip if rounds.flags.zero else None)
        if real:
            sent.add_(source.x, -1.0)
        rounds.decode(1.0, target.accumulate)
        return replace(rounds.finish(sent), error=source.x)


def _natural(joined: Tensor) -> Tensor:
    """A parameter in permuted order, in its own."""
    numel = joined.numel()
    natural, full = torch.empty_like(joined), numel // GRAIN
    if full:  # whole blocks at once: an index per element would be twice as large as the parameter
        blocks = permuted_blocks(numel, GRAIN, ways_of(numel, GRAIN), joined.device)[:full]
        natural[: full * GRAIN].view(full, GRAIN)[blocks] = joined[: full * GRAIN].view(full, GRAIN)
    natural[full * GRAIN :] = joined[full * GRAIN :]  # a short block stays last
    return natural


class _PermutedRounds(TwoRounds):
    """Owners' messages over permuted shares, decoded into natural order."""

    permutation: _Permutation

    def decode(self, sign: float, accumulate: bool) -> None:
        out = self.target.out
        if out.flat.is_meta:
            return
        if not accumulate:
            clear_(out)  # out may be x
        self.permutation.add(self.wires.view(-1), out, sign * self.factor, self.flags.skip, self.wires.shape[1])


class _Permutation:
    """The permuted order of a layout: coded segments in ways of blocks, exact ones as they are."""

    def __init__(self, compressor: Compressor, layout: Layout, world: int, seed: int) -> None:
        self.compressor, self.seed = compressor, seed
        self.whole = layout.packed()
        self.packing = pack_shares(compressor, self.whole, world)
        self._ways = [1 if compressor.exact(s) else ways_of(s.numel, GRAIN) for s in self.whole.segments]
        self._tables: dict[object, tuple[Tensor, ...]] = {}

    def rows(self, x: Layout, add: Layout | None) -> Tensor:
        """The table that permutes ``x`` (or the sum with ``add``)."""
        found = self._tables.get(("out", x, add))
        if found is None:
            rows: list[list[int]] = []
            for number, s in enumerate(self.whole.segments):
                if not s.numel:
                    continue
                at = [-1 if layout is None else layout.position(s) for layout in (x, add)]
                rows.append([*at, s.numel, 4 * s.start, 0, 0, self._ways[number], number])
            found = self._tables["out", x, add] = (torch.tensor(rows, dtype=torch.int64).view(-1, 8),)
        return found[0]

    def add(
        self, wire: Tensor, natural: Bucket, scale: float, skip: Tensor | None = None, stride: int | None = None
    ) -> None:
        """natural += scale * what the messages in ``wire`` (end to end, or ``stride`` bytes apart) hold."""
        coded, pieces, exact, none = self._back(natural.layout, stride)
        ops.dense_decode(wire.unsqueeze(0), exact, none if skip is None else skip, natural.flat, scale, True)
        left_out = None if skip is None else skip.cpu()  # tables lie on the host: here a GPU is waited for
        if left_out is not None and bool(left_out.any()):
            keep = left_out[coded[:, 7]] == 0
            coded, pieces = coded[keep], pieces[keep]
        scatter_rows: Any = getattr(self.compressor, "scatter_rows")  # noqa: B009
        scatter_rows(wire, coded, pieces, natural.flat, scale, GRAIN)

    def _back(self, natural: Layout, stride: int | None) -> tuple[Tensor, ...]:
        found = self._tables.get(("back", natural, stride))
        if found is None:
            packing, pieces = self.packing, list[tuple[int, int, int]]()
            coded = packing.table(True, self.whole, seed=self.seed, stride=stride).clone()
            for line, row in zip(coded, packing.coded, strict=True):
                s = self.whole.segments[row.number]
                line[0] = natural.position(s)
                pieces.append((s.numel, row.segment.offset - s.offset, self._ways[row.number]))
            exact = packing.table(False, natural, seed=self.seed, stride=stride)
            none = torch.zeros(packing.count, dtype=torch.uint8)
            found = coded, torch.tensor(pieces, dtype=torch.int64).view(-1, 3), exact, none
            self._tables["back", natural, stride] = found
        return found


_permutation = lru_cache(maxsize=4096)(_Permutation)


class _Sent:
    """An ``Update``: this rank's own selections, in natural order; segments in ``skip`` were given back."""

    def __init__(self, wire: Tensor, permutation: _Permutation, skip: Tensor | None) -> None:
        self._wire, self._permutation, self._skip = wire, permutation, skip

    def add_(self, into: Bucket, scale: float = 1.0) -> None:
        self._permutation.add(self._wire, into, scale, self._skip)

    def zero_(self, into: Bucket) -> None:
        sent = self.dense(into.layout)
        into.flat[sent.flat != 0] = 0.0

    def dense(self, layout: Layout) -> Bucket:
        bucket = Bucket(torch.zeros(layout.numel, dtype=torch.float32, device=self._wire.device), layout)
        self.add_(bucket)
        return bucket
