"""A simulator: W ranks in one process, without threads, to the bit what W processes compute."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from ..core.collectives import (
    INSIDE,
    AllGather,
    AllReduce,
    AllReduceMax,
    AllToAll,
    Broadcast,
    Collective,
    Commit,
    ReduceScatter,
)
from ..core.compressor import Compressor
from ..core.context import Context
from ..core.deferred import raise_deferred
from ..core.drive import OutOfStepError, in_groups, lockstep
from ..core.layout import Bucket, Layout, Segment
from ..core.reducer import Flow, Reducer, flow
from ..core.source import Target
from ..core.state import State, Store
from ..core.structure import between_steps, has_review
from ..routes.choose import settle
from ..routes.within import Within, check_inside, deal
from ..state.merging import merge

T = TypeVar("T")
Ranks = tuple[int, ...]


class Simulator:
    """Runs a reducer on ``world`` simulated ranks.

    ``step`` takes every rank's buckets and returns every rank's means; flows of the same bucket run in lockstep. The
    ranks' stores are in ``stores``, bytes sent per rank (link headers apart) in ``sent``: those that leave its node.
    """

    def __init__(
        self,
        reducer: Reducer | Compressor,
        world: int,
        *,
        seed: int = 0,
        unscale: float = 1.0,
        rows: bool = False,
        ranks_per_node: int = 1,
        inside: Compressor | None = None,
    ) -> None:
        """``rows``: buckets are made of one row per rank (``Layout.sharded``), and each wants its own row of the mean
        alone; elsewhere its out keeps what it holds. ``ranks_per_node``: so many ranks in a row share a node, average
        by ``inside`` (None: exactly) among each other, and by the reducer between nodes (``compcomm.routes.within``).
        """
        if not isinstance(reducer, Reducer | Compressor):
            raise TypeError(
                f"Simulator({reducer!r}): no reducer. Give one, such as EF21(TopK(0.01)); parse reads text."
            )
        nodes = _nodes(world, ranks_per_node, rows)
        if inside is not None:
            call = f"Simulator(inside={inside!r})"
            if nodes == world:
                raise ValueError(f"{call}: without ranks_per_node= there is no inside. Give it, or leave this out.")
            check_inside(call, inside)
        self.reducer, self.rows = settle(reducer, nodes, rows=rows), rows
        self.world, self.seed, self.unscale, self.steps = world, seed, unscale, 0
        self._per = ranks_per_node
        self._owners: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        within = [Within(i, self._per, self._owners, inside) if self._per > 1 else None for i in range(self._per)]
        self.contexts = [
            Context(rank // self._per, nodes, seed=seed, within=within[rank % self._per]) for rank in range(world)
        ]
        self.stores = [Store(self.reducer, ctx.rank, nodes, rows=rows) for ctx in self.contexts]
        self.sent = [0] * world
        self.bad = False
        self._fitting: set[Layout] = set()
        self._segments: dict[tuple[str, int], Segment] = {}
        self._here = frozenset(range(world))

    @torch.no_grad()
    def step(
        self,
        buckets: Sequence[Sequence[Bucket]],
        outs: Sequence[Sequence[Bucket]] | None = None,
        present: Collection[int] | None = None,
    ) -> list[list[Bucket]]:
        """One step: ``buckets[rank][b]`` in (left as they are), means out. ``self.bad`` tells whether it was undone.

        ``present``: the ranks that take part (None: all). The others' buckets do not count, and they send nothing;
        every rank gets the mean.

        Raises:
            ValueError: the reducer does not fit these buckets: what a host refuses at attach, all that was seen so far
                taken as the model. Gradients in float64, which no host has, are not held to that.
        """
        here = self._present(present)
        if len(buckets) != self.world or any(isinstance(given, dict) for given in buckets):
            raise ValueError(
                f"Simulator.step: {len(buckets)} entries for {self.world} ranks. Give a list of buckets per rank; "
                f"named tensors go to mean([...])."
            )
        _check_buckets(buckets)
        self._check(buckets[0])
        self._deal(buckets[0])
        flows: list[list[Flow]] = []
        means: list[list[Bucket]] = [[] for _ in range(self.world)]
        contexts: list[Context] = []
        for b in range(len(buckets[0])):
            group: list[Flow] = []
            for rank in range(self.world):
                old = self.contexts[rank]
                ctx = replace(
                    old, step=self.steps, bucket=b, unscale=self.unscale, bad=False, faults=[], apart=False,
                    participating=rank in here, present=None if len(here) == self.world else len(here),
                )  # fmt: skip
                contexts.append(ctx)
                flat, layout = buckets[rank][b]
                if outs is None:
                    x = out = Bucket(flat.clone(), layout)
                    if self.rows:
                        out = Bucket(torch.zeros_like(flat), layout.equal_rows(self.world)[rank])
                else:  # no allocation: fresh memory costs more than the kernels
                    x = Bucket(ctx.buffer("input", flat.numel(), flat.dtype).copy_(flat), layout)
                    out = outs[rank][b]
                means[rank].append(out)
                self.stores[rank].declare(x.layout if ctx.within is None else ctx.within.own(x.layout))
                target = Target(out, row=self.rows)
                group.append(flow(self.reducer, x, State(self.stores[rank], x.layout), ctx, target))
            self._run(group)
            flows.append(group)
        for ctx in contexts:
            raise_deferred(ctx.faults)
        self.bad = self._agreed(contexts)
        for group in flows:
            for f in group:
                try:
                    f.send(self.bad)
                except StopIteration:
                    continue
                raise RuntimeError("Simulator: a flow yielded after its Commit.")
        if has_review(self.reducer, self.steps):
            self._review()
        self.steps += 1
        return means

    def _agreed(self, contexts: Sequence[Context]) -> bool:
        """Whether the step is bad, which every rank must know by itself, or ask the others (``Context.apart``)."""
        ranks = [contexts[rank :: self.world] for rank in range(self.world)]
        found = [any(bool(ctx.bad) for ctx in own) for own in ranks]
        asks = [any(ctx.apart for ctx in own) for own in ranks]
        if any(asks) and not all(asks):
            raise OutOfStepError(f"ranks {[r for r, a in enumerate(asks) if a]} alone ask whether the step is bad")
        if not any(asks) and any(found) and not all(found):
            raise OutOfStepError(f"ranks {[r for r, b in enumerate(found) if b]} alone know that the step is bad")
        return any(found)

    def _check(self, buckets: Sequence[Bucket]) -> None:
        layouts = [b.layout for b in buckets]
        if self._fitting.issuperset(layouts) or any(b.flat.dtype == torch.float64 for b in buckets):
            return
        known = {**self._segments, **{(s.name, s.offset): s for layout in layouts for s in layout.segments}}
        model, at = list[Segment](), 0
        for s in known.values():
            model.append(s._replace(start=at, stop=at + s.numel))
            at += s.numel
        self.reducer.check(Layout(model))
        self._fitting.update(layouts)
        self._segments = known

    def _review(self) -> None:
        """What controllers do between two steps."""
        reviews = [
            between_steps(self.reducer, store.segments(), store, replace(ctx, step=self.steps))
            for ctx, store in zip(self.contexts, self.stores, strict=True)
        ]
        for ranks, ops in self._rounds(reviews):
            self._perform(ranks, ops)

    def merged(self) -> list[dict[str, dict[str, Tensor]]]:
        """The ranks' memory, merged for another number of workers (``compcomm.state.merging``), as each rank has it."""
        shapes = None if self._per == 1 else dict(self._shapes)
        rounds = lockstep([merge(store, shapes) for store in self.stores])
        while True:
            try:
                perform(next(rounds))
            except StopIteration as end:
                return end.value

    def _present(self, present: Collection[int] | None) -> frozenset[int]:
        if isinstance(present, int):
            raise TypeError(f"Simulator.step(present={present}): give the ranks that take part, such as [{present}].")
        here = frozenset(range(self.world) if present is None else present)
        if not here <= set(range(self.world)):
            raise ValueError(f"Simulator.step(present={sorted(here)}): the ranks are 0 to {self.world - 1}.")
        if len(here) < self.world and not self.reducer.traits.absence:
            raise ValueError(
                f"Simulator.step(present={sorted(here)}): {self.reducer!r} needs every rank in every step. "
                f"Use EF21(...), whose estimates stand in for the ranks that are away."
            )
        if len(here) < self.world and self._per > 1:
            raise ValueError(f"Simulator.step(present={sorted(here)}): every rank of a node owns a part. Leave it out.")
        self._here = here
        return here

    def mean(
        self, tensors: Sequence[dict[str, Tensor]], present: Collection[int] | None = None
    ) -> list[dict[str, Tensor]]:
        """One step on named tensors, one dictionary per rank, as a single bucket; ``present`` as in ``step``.

        Raises:
            TypeError: it is not one dictionary per rank.
            ValueError: the ranks' names or shapes differ.
        """
        _check_named(tensors, self.world)
        layout = Layout.of((n, t.shape) for n, t in tensors[0].items())
        flats = [torch.cat([t.reshape(-1) for t in d.values()]) for d in tensors]
        return [b[0].views() for b in self.step([[Bucket(f, layout)] for f in flats], present=present)]

    def _deal(self, buckets: Sequence[Bucket]) -> None:
        """Gives parameters that are new an owner within each node."""
        if self._per == 1:
            return
        new = {s.name: s for b in buckets for s in b.layout.segments if s.name not in self._owners}
        self._owners |= deal([(s.name, s.numel) for s in reversed(new.values())], self._per)
        self._shapes |= {s.name: s.shape for s in new.values()}

    def _run(self, group: list[Flow]) -> None:
        for ranks, ops in self._rounds(group):
            if isinstance(ops[0], Commit):
                return
            self._perform(ranks, ops)

    def _rounds(self, flows: Sequence[Generator[Collective, Any, T]]) -> Generator[tuple[Ranks, list[Collective]]]:
        """What the ranks do together, one collective after the other, and which of them."""
        if self._per > 1:
            yield from in_groups(flows, self._together)
            return
        everyone = tuple(range(self.world))
        for ops in lockstep(flows):
            yield everyone, ops

    def _together(self, rank: int, op: Collective) -> Ranks:
        first, place = rank - rank % self._per, rank % self._per
        inside = op.axis == INSIDE
        return tuple(range(first, first + self._per)) if inside else tuple(range(place, self.world, self._per))

    def _perform(self, ranks: Ranks, ops: Sequence[Collective]) -> None:
        for rank, op in zip(ranks, ops, strict=True):
            ctx = self.contexts[rank]
            self.sent[rank] += op.counted_bytes(ctx.world, ctx.rank) if rank in self._here else 0
        perform(ops)


def _nodes(world: int, ranks_per_node: int, rows: bool) -> int:
    """How many nodes there are."""
    given = f"Simulator(world={world}, ranks_per_node={ranks_per_node!r})"
    if isinstance(ranks_per_node, bool) or not isinstance(ranks_per_node, int) or ranks_per_node < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"{given}: an integer, 1 or more.")
    if world % ranks_per_node:
        raise ValueError(f"{given}: nodes have equally many ranks, so it divides the world.")
    if rows and ranks_per_node > 1:
        raise ValueError(f"{given}: rows go to every rank in one step. Leave one of the two out.")
    return world // ranks_per_node


def _check_named(tensors: Any, world: int) -> None:
    kind = type(tensors).__name__
    if isinstance(tensors, list | tuple):
        others = [type(entry).__name__ for entry in cast("list[object]", tensors) if not isinstance(entry, dict)]
        kind = f"[{others[0]}, ...]" if others else ""
    if kind:
        raise TypeError(
            f"Simulator.mean({kind}): give a list with one dictionary of named tensors for each of the {world} ranks, "
            f'such as mean([{{"w": gradient}} for gradient in gradients]).'
        )
    due = {n: list(t.shape) for n, t in tensors[0].items()} if tensors else {}
    for rank, named in enumerate(tensors):
        found = {n: list(t.shape) for n, t in named.items()}
        odd = next((n for n in {**due, **found} if found.get(n) != due.get(n)), None)
        if odd is not None or list(found) != list(due):
            what = "the same names in another order than"
            if odd is not None:
                what = f"{odd!r} as {found.get(odd, 'nothing')}, {due.get(odd, 'nothing')} on"
            raise ValueError(
                f"Simulator.mean: rank {rank} has {what} rank 0. Give every rank the same names, in the same order, "
                f"and equal shapes."
            )


def _check_buckets(buckets: Sequence[Sequence[Bucket]]) -> None:
    due = [b.layout for b in buckets[0]]
    for rank, given in enumerate(buckets):
        if [b.layout for b in given] != due:
            raise ValueError(
                f"Simulator.step: rank {rank} has buckets of {[b.layout for b in given]}, rank 0 of {due}. Give every "
                f"rank the same buckets, in the same order."
            )
        for b, (flat, layout) in enumerate(given):
            if flat.dim() != 1 or flat.numel() != layout.numel:
                raise ValueError(
                    f"Simulator.step: bucket {b} of rank {rank} has a tensor of shape {list(flat.shape)} where its "
                    f"{layout!r} needs a flat one of {layout.numel}."
                )


def perform(group: Sequence[Collective]) -> None:
    """Does what the ranks' collectives (one per rank, of one kind) ask for."""
    first = group[0]
    for kind, run in _RUN.items():
        if isinstance(first, kind):
            run(group)
            return
    raise TypeError(f"Simulator: unknown collective {first!r}.")


def _all_reduce(group: Sequence[AllReduce]) -> None:
    total = group[0].buffer.clone()
    for c in group[1:]:
        total += c.buffer
    for c in group:
        c.buffer.copy_(total)


def _all_reduce_max(group: Sequence[AllReduceMax]) -> None:
    largest = torch.stack([c.buffer for c in group]).amax(0)
    for c in group:
        c.buffer.copy_(largest)


def _all_gather(group: Sequence[AllGather]) -> None:
    joined = torch.cat([c.send for c in group])
    for c in group:
        c.recv.copy_(joined)


def _all_to_all(group: Sequence[AllToAll]) -> None:
    parts = [c.send.split(c.send_splits) for c in group]
    for rank, c in enumerate(group):
        torch.cat([p[rank] for p in parts], out=c.recv)


def _reduce_scatter(group: Sequence[ReduceScatter]) -> None:
    total = group[0].send.clone()
    for c in group[1:]:
        total += c.send
    for c, part in zip(group, total.chunk(len(group)), strict=True):
        c.recv.copy_(part)


def _broadcast(group: Sequence[Broadcast]) -> None:
    source = group[group[0].source].buffer.clone()
    for c in group:
        c.buffer.copy_(source)


_RUN: dict[type[Collective], Callable[..., None]] = {
    AllReduce: _all_reduce,
    AllReduceMax: _all_reduce_max,
    AllGather: _all_gather,
    AllToAll: _all_to_all,
    ReduceScatter: _reduce_scatter,
    Broadcast: _broadcast,
}
