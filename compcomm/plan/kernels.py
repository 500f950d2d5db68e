"""Seconds that a method's kernels take on this machine, stage by stage, from a sample of the model.

A flow is a row of stages: it codes, yields a collective, decodes what came, perhaps codes again, and so on. Stages are
timed one by one, since a step's pipeline hides some of them behind the wire and others not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from time import perf_counter

import torch

from ..core.collectives import AllReduce, AllReduceMax, Commit
from ..core.context import Arena, Context
from ..core.drive import lockstep
from ..core.layout import Bucket, Layout
from ..core.reducer import Flow, Reducer, flow
from ..core.source import Target
from ..core.state import State, Store
from ..core.transport import Pending, Transport
from ..engine.sample import sample_layout
from ..transports.simulator import perform
from . import cost
from .cost import collectives
from .link import Link
from .schedule import stretch

SAMPLE = 25 * (1 << 20) // 4
"""Elements: a bucket of DDP's, so that what a bucket costs beside its elements is in it as often as in a model."""
FEW, MANY = 4, 16
"""Simulated ranks between which the growth of stages is measured."""
_FAR = 1 << 30
"""A step at which any warm-up is over."""
_BUDGET = 1.0
"""Seconds for the measured steps of one method."""


@dataclass(frozen=True)
class Stages:
    """Seconds of every stage for ``numel`` elements among ``world`` ranks, one more than collectives; ``received``:
    bytes that the collective in front of a stage brings, 0 for the first."""

    world: int
    numel: int
    seconds: tuple[float, ...]
    received: tuple[int, ...]

    @staticmethod
    def at(row: Sequence[float], stage: int, count: int) -> float:
        """``row``'s entry for a stage of a bucket that has ``count``; short flows have the first ones and the last."""
        return row[len(row) - 1 if stage == count - 1 else min(stage, len(row) - 1)]


@dataclass(frozen=True)
class Kernels:
    """What was measured of one method at one number of workers, and how it goes on for others.

    The first stage codes this rank's own gradient, whatever W is. A later one reads what its collective brought: W
    payloads behind an all-gather of selections, no more than before behind a sum or behind shares. ``growth``: seconds
    for each of those bytes more, by stage; empty where that was not measured, and stages then stay as long as they are.

    ``stretch``: by how much longer stages and collectives took together than each alone: the network's own work waits
    for cores that code, and ranks wait for each other. 1 where that was not measured.
    """

    measured: Stages | None = None
    growth: tuple[float, ...] = ()
    stretch: float = 1.0

    def seconds(self, reducer: Reducer | None, layout: Layout, world: int, rows: bool = False) -> tuple[float, ...]:
        """Of every stage of a bucket. Zeros where nothing was measured."""
        planned = collectives(reducer, layout, world, rows=rows)
        count = len(planned) + 1
        if self.measured is None:
            return (0.0,) * count
        share = sum(s.numel for s in layout.segments) / self.measured.numel
        if share == 0.0:
            return (0.0,) * count
        received = (0, *(p.nbytes for p in planned))
        return tuple(self._stage(self.measured, i, count, received[i] / share) * share for i in range(count))

    def _stage(self, measured: Stages, stage: int, count: int, received: float) -> float:
        alone = measured.at(measured.seconds, stage, count)
        if stage == 0 or not self.growth:
            return alone
        more = received - measured.at(measured.received, stage, count)
        return max(0.0, alone + measured.at(self.growth, stage, count) * more)


def calibrate(
    reducer: Reducer | None,
    layouts: Sequence[Layout],
    world: int,
    transport: Transport | None = None,
    link: Link | None = None,
    rows: bool = False,
) -> Kernels:
    """Runs a settled reducer on a sample of the model's parameters and times its stages.

    With ``transport`` through that group, whose world it is: two buckets side by side as the hook's schedule has them,
    so that one is coded while the other is on the wire, and on all ranks at the same time: hosts that share cores, and
    kernels that share them with the network, slow each other as they will in training. A stage counts with the slowest
    rank's time, since the next collective waits for it. Collective: every rank calls it, between two steps, and all get
    the same numbers. Takes about as long as three to eight exchanges of one bucket. With the ``link`` that was measured
    beside it, ``stretch`` is found too: the pair's seconds, over what the schedule makes of its parts.

    Else on up to 4 simulated ranks in this process. Where what a stage reads grows with W, ``grown`` adds how.

    None, the host's own exchange, has no kernels. ``rows``: buckets are made of one row per rank, which it wants alone.
    """
    if reducer is None or world == 1:
        return Kernels()
    whole = _matrices(layouts, rows)
    if transport is not None:
        return _real(reducer, whole, transport, link, rows)
    few = min(world, FEW)
    small = sample_layout(reducer, whole, few, SAMPLE, rows=rows)
    small = small.sharded(few) if rows else small
    (seconds,) = _rounds([_bench(reducer, small, few, rows)])
    found = Kernels(_stages(reducer, small, few, seconds, rows))
    return found if rows else grown(found, reducer, layouts)  # of a row's messages there are W, each W-th as long


def _matrices(layouts: Sequence[Layout], rows: bool = False) -> Layout:
    """The parameters of buckets, a piece of whole rows as one of its own; ``rows``: whole, as pieces are all there."""
    found: dict[tuple[str, int], tuple[str, tuple[int, ...]]] = {}
    for s in (s for layout in layouts for s in layout.segments if s.numel):
        width = prod(s.shape[1:])
        if rows or s.whole:
            found[s.name, 0] = s.name, s.shape
        elif not s.numel % width:
            found[s.name, s.offset] = f"{s.name}@{s.offset}", (s.numel // width, *s.shape[1:])
    return Layout.of(found.values())


def grown(kernels: Kernels, reducer: Reducer | None, layouts: Sequence[Layout]) -> Kernels:
    """With ``growth``, where stages read more the more workers there are: from 4 and 16 simulated ranks that take
    turns, but never less than a copy of those bytes takes."""
    if kernels.measured is None or kernels.growth or reducer is None:
        return kernels
    small = sample_layout(reducer, _matrices(layouts), MANY, SAMPLE // 4)
    received = [[p.nbytes for p in collectives(reducer, small, world)] for world in (FEW, MANY)]
    more = [b - a if b >= 1.2 * a else 0 for a, b in zip(*received, strict=True)]
    if not any(more):
        return kernels
    few, many = _rounds([_bench(reducer, small, world) for world in (FEW, MANY)])
    least = copying()
    slopes = (max(least, (b - a) / n) if n else 0.0 for a, b, n in zip(few[1:], many[1:], more, strict=True))
    return replace(kernels, growth=(0.0, *slopes))


def _bench(reducer: Reducer, layout: Layout, world: int, rows: bool = False) -> list[_Rank]:
    """Ranks of one process, which take turns."""
    return [_Rank(reducer, layout, rank, world, rows=rows) for rank in range(world)]


def copying() -> float:
    """Seconds for each byte of a copy, on this machine."""
    source, target = torch.ones(1 << 22, dtype=torch.float32), torch.empty(1 << 22, dtype=torch.float32)
    best = float("inf")
    for _ in range(5):
        since = perf_counter()
        target.copy_(source)
        best = min(best, perf_counter() - since)
    return best / source.nbytes


def _real(reducer: Reducer, whole: Layout, transport: Transport, link: Link | None, rows: bool) -> Kernels:
    """Both buckets together are as large as the sample of one process."""
    world = transport.world
    layout = sample_layout(reducer, whole, world, SAMPLE // 2, rows=rows)
    layout = layout.sharded(world) if rows else layout
    pair = [_Rank(reducer, layout, transport.rank, world, bucket=b, rows=rows) for b in range(2)]
    _side_by_side(pair, transport)  # memory is touched
    once = torch.tensor([_side_by_side(pair, transport)[-1]], dtype=torch.float64)
    transport.start(AllReduceMax(once)).wait()
    rounds = max(2, min(7, int(2 * _BUDGET / max(1e-3, float(once)))))
    found = torch.tensor([_side_by_side(pair, transport) for _ in range(rounds)], dtype=torch.float64)
    transport.start(AllReduceMax(found.view(-1))).wait()
    *seconds, took = found.median(0).values.tolist()
    stages = _stages(reducer, layout, world, seconds, rows)
    if link is None:
        return Kernels(stages)
    wires = [cost.seconds(p, world, link) for p in collectives(reducer, layout, world, rows=rows)]
    return Kernels(stages, stretch=stretch(seconds, wires, took))


@torch.no_grad()
def _side_by_side(pair: Sequence[_Rank], transport: Transport) -> list[float]:
    """Seconds of every stage, the mean of both buckets, and of all together."""
    flows = [rank.begin() for rank in pair]
    spent: list[list[float]] = [[] for _ in pair]
    pending: list[Pending | None] = [None for _ in pair]
    finished = [False for _ in pair]

    def advance(b: int) -> None:
        held = pending[b]
        if held is not None:
            held.wait()
        since = perf_counter()
        op = next(flows[b])
        spent[b].append(perf_counter() - since)
        finished[b] = isinstance(op, Commit)
        if not finished[b]:
            pending[b] = transport.start(op)

    transport.start(AllReduce(torch.zeros(1, dtype=torch.float32))).wait()  # all ranks are here
    begin = perf_counter()
    for b in (0, 1, 0):  # as the schedule has it
        if not finished[b]:
            advance(b)
    while not all(finished):
        for b in (0, 1):
            if not finished[b]:
                advance(b)
    took = perf_counter() - begin
    _commit(flows)
    return [*(sum(stage) / len(pair) for stage in zip(*spent, strict=True)), took]


def _commit(flows: Sequence[Flow]) -> None:
    for one in flows:
        for _ in one:  # answers the Commit: the step was good
            raise RuntimeError("a flow yielded after its Commit")


def _stages(reducer: Reducer, layout: Layout, world: int, seconds: Sequence[float], rows: bool = False) -> Stages:
    received = (0, *(p.nbytes for p in collectives(reducer, layout, world, rows=rows)))
    return Stages(world, sum(s.numel for s in layout.segments), tuple(seconds), received)


class _Rank:
    """One rank's memory and gradients."""

    def __init__(
        self, reducer: Reducer, layout: Layout, rank: int, world: int, bucket: int = 0, rows: bool = False
    ) -> None:
        self.reducer, self.layout, self.rank, self.world, self.bucket = reducer, layout, rank, world, bucket
        self.store, self.arena, self.step = Store(reducer, rank, world, rows=rows), Arena(), _FAR
        self.wanted = layout.equal_rows(world)[rank] if rows else layout
        self.store.declare(layout)
        generator = torch.Generator().manual_seed(2 * rank + bucket)
        self.gradients = [torch.randn(layout.numel, dtype=torch.float32, generator=generator) for _ in range(2)]
        self.flat = torch.empty(layout.numel, dtype=torch.float32)

    def begin(self) -> Flow:
        self.step += 1
        torch.add(self.gradients[0], self.gradients[1], alpha=float(self.step % 7), out=self.flat)
        ctx = Context(
            self.rank, self.world, self.step, self.bucket, arena=self.arena, watch=self.reducer.traits.stateful
        )  # fmt: skip
        target = Target(Bucket(self.flat, self.wanted), row=self.store.rows)
        return flow(self.reducer, Bucket(self.flat, self.layout), State(self.store, self.layout), ctx, target)


@torch.no_grad()
def _rounds(benches: Sequence[Sequence[_Rank]]) -> list[list[float]]:
    """The shortest seconds per stage and rank of three rounds or more, as time allows, for each bench in turns: what
    else the machine does only ever adds to them."""
    found: list[list[list[float]]] = [[] for _ in benches]
    begin = perf_counter()
    for number in range(9):
        for bench, rounds in zip(benches, found, strict=True):
            seconds = _once([rank.begin() for rank in bench])
            if number >= 2:  # memory is touched, and hints are warm
                rounds.append(seconds)
        if number >= 4 and perf_counter() - begin > _BUDGET:
            break
    return [[min(stage) for stage in zip(*rounds, strict=True)] for rounds in found]


def _once(flows: Sequence[Flow]) -> list[float]:
    seconds: list[float] = []
    since = perf_counter()
    for ops in lockstep(flows):
        seconds.append((perf_counter() - since) / len(flows))
        if isinstance(ops[0], Commit):
            break
        perform(ops)
        since = perf_counter()
    _commit(flows)
    return seconds
