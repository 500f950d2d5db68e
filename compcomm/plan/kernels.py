"""Seconds that a method's kernels take on this machine, stage by stage, from a sample of the model.

A flow is a row of stages: it codes, yields a collective, decodes what came, perhaps codes again, and so on. Stages are
timed one by one, since a step's pipeline hides some of them behind the wire and others not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch

from ..bucket import Bucket, Layout
from ..collectives import AllReduce, AllReduceMax, Commit
from ..reducer import Arena, Context, Flow, Reducer, flow
from ..store import State, Store
from ..transports.process_group import Pending, ProcessGroup
from ..transports.simulate import perform
from . import cost
from .cost import collectives
from .link import Link
from .sample import sample
from .schedule import stretch

SAMPLE = 25 * (1 << 20) // 4
"""Elements: a bucket of DDP's, so that what a bucket costs beside its elements is in it as often as in a model."""
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

    def of(self, stage: int, count: int) -> float:
        """Seconds of a stage in a bucket that has ``count`` of them; short flows have the first ones and the last."""
        last = len(self.seconds) - 1
        return self.seconds[last if stage == count - 1 else min(stage, last)]


@dataclass(frozen=True)
class Kernels:
    """What was measured of one method: at one number of workers, or two.

    The first stage codes this rank's own gradient, whatever W is. A later one reads what its collective brought, and
    its seconds grow along a line with those bytes: W payloads behind an all-gather of selections, nothing more than
    before behind a sum or behind shares. So two small numbers of workers tell how it goes on for any.

    ``stretch``: by how much longer stages and collectives took together than each alone: the network's own work waits
    for cores that code, and ranks wait for each other. 1 where that was not measured.
    """

    measured: tuple[Stages, ...] = ()
    stretch: float = 1.0

    def seconds(self, reducer: Reducer | None, layout: Layout, world: int) -> tuple[float, ...]:
        """Of every stage of a bucket. Zeros where nothing was measured."""
        planned = collectives(reducer, layout, world)
        count = len(planned) + 1
        if not self.measured:
            return (0.0,) * count
        numel = sum(s.numel for s in layout.segments)
        return tuple(self._stage(i, count, numel, 0 if i == 0 else planned[i - 1].nbytes, world) for i in range(count))

    def _stage(self, stage: int, count: int, numel: int, received: int, world: int) -> float:
        near = min(self.measured, key=lambda m: abs(m.world - world))
        share = numel / near.numel
        if stage == 0 or len(self.measured) == 1 or near.world == world:
            return near.of(stage, count) * share
        low, high = self.measured[0], self.measured[-1]
        a, b = (m.received[-1 if stage == count - 1 else min(stage, len(m.received) - 1)] for m in (low, high))
        if b < a * 1.2:
            return near.of(stage, count) * share
        slope = max(0.0, (high.of(stage, count) - low.of(stage, count)) / (b - a))
        return max(0.0, high.of(stage, count) + slope * (received / share - b)) * share


def calibrate(
    reducer: Reducer | None,
    layouts: Sequence[Layout],
    world: int,
    transport: ProcessGroup | None = None,
    link: Link | None = None,
) -> Kernels:
    """Runs a settled reducer on a sample of the model's parameters and times its stages.

    With ``transport`` through that group, whose world it is: two buckets side by side as the hook's schedule has them,
    so that one is coded while the other is on the wire, and on all ranks at the same time: hosts that share cores, and
    kernels that share them with the network, slow each other as they will in training. A stage counts with the slowest
    rank's time, since the next collective waits for it. Collective: every rank calls it, between two steps, and all get
    the same numbers. Takes about as long as three to eight exchanges of one bucket. With the ``link`` that was measured
    beside it, ``stretch`` is found too: the pair's seconds, over what the schedule makes of its parts.

    Else on simulated ranks in this process: up to 8, and where what a stage reads grows with W, at 4 and at 8.

    None, DDP without a hook, has no kernels.
    """
    if reducer is None or world == 1:
        return Kernels()
    whole = Layout.of((s.name, s.shape) for layout in layouts for s in layout.segments if s.whole)
    if transport is not None:
        return _real(reducer, whole, transport, link)
    small = sample(reducer, whole, min(world, 8), SAMPLE)
    worlds = [min(world, 4)]
    if world > 4 and any(_grows(reducer, small, min(world, 8))):
        worlds.append(min(world, 8))
    return Kernels(tuple(_simulated(reducer, small, w) for w in worlds))


def _grows(reducer: Reducer, layout: Layout, world: int) -> list[bool]:
    few, many = collectives(reducer, layout, 4), collectives(reducer, layout, world)
    return [b.nbytes >= 1.2 * a.nbytes for a, b in zip(few, many, strict=True)]


def _simulated(reducer: Reducer, layout: Layout, world: int) -> Stages:
    """The mean over ``world`` ranks of one process, which take turns."""
    bench = [_Rank(reducer, layout, rank, world) for rank in range(world)]
    return _stages(reducer, layout, world, _rounds(bench))


def _real(reducer: Reducer, whole: Layout, transport: ProcessGroup, link: Link | None) -> Kernels:
    """Both buckets together are as large as the sample of one process."""
    world = transport.world
    layout = sample(reducer, whole, world, SAMPLE // 2)
    pair = [_Rank(reducer, layout, transport.rank, world, bucket=b) for b in range(2)]
    _side_by_side(pair, transport)  # memory is touched
    once = torch.tensor([_side_by_side(pair, transport)[-1]], dtype=torch.float64)
    transport.start(AllReduceMax(once)).wait()
    rounds = max(2, min(7, int(2 * _BUDGET / max(1e-3, float(once)))))
    found = torch.tensor([_side_by_side(pair, transport) for _ in range(rounds)], dtype=torch.float64)
    transport.start(AllReduceMax(found.view(-1))).wait()
    *seconds, took = found.median(0).values.tolist()
    stages = _stages(reducer, layout, world, seconds)
    if link is None:
        return Kernels((stages,))
    wires = [cost.seconds(p, world, link) for p in collectives(reducer, layout, world)]
    return Kernels((stages,), stretch(seconds, wires, took))


@torch.no_grad()
def _side_by_side(pair: Sequence[_Rank], transport: ProcessGroup) -> list[float]:
    """Seconds of every stage, the mean of both buckets, and of all together."""
    flows = [rank.begin() for rank in pair]
    spent: list[list[float]] = [[] for _ in pair]
    pending: list[Pending | None] = [None for _ in pair]
    landed = [False for _ in pair]

    def advance(b: int) -> None:
        held = pending[b]
        if held is not None:
            held.wait()
        since = perf_counter()
        op = flows[b].send(False) if spent[b] else next(flows[b])
        spent[b].append(perf_counter() - since)
        landed[b] = isinstance(op, Commit)
        if not landed[b]:
            pending[b] = transport.start(op)

    transport.start(AllReduce(torch.zeros(1))).wait()  # all ranks are here
    begin = perf_counter()
    for b in (0, 1, 0):  # as the schedule has it
        if not landed[b]:
            advance(b)
    while not all(landed):
        for b in (0, 1):
            if not landed[b]:
                advance(b)
    took = perf_counter() - begin
    _commit(flows)
    return [*(sum(stage) / len(pair) for stage in zip(*spent, strict=True)), took]


def _commit(flows: Sequence[Flow]) -> None:
    for one in flows:
        for _ in one:  # answers the Commit: the step was good
            raise RuntimeError("a flow yielded after its Commit")


def _stages(reducer: Reducer, layout: Layout, world: int, seconds: Sequence[float]) -> Stages:
    received = (0, *(p.nbytes for p in collectives(reducer, layout, world)))
    return Stages(world, sum(s.numel for s in layout.segments), tuple(seconds), received)


class _Rank:
    """One rank's memory and gradients."""

    def __init__(self, reducer: Reducer, layout: Layout, rank: int, world: int, bucket: int = 0) -> None:
        self.reducer, self.layout, self.rank, self.world, self.bucket = reducer, layout, rank, world, bucket
        self.store, self.arena, self.step = Store(reducer, rank, world), Arena(), _FAR
        self.store.declare(layout)
        generator = torch.Generator().manual_seed(2 * rank + bucket)
        self.gradients = [torch.randn(layout.numel, generator=generator) for _ in range(2)]
        self.flat = torch.empty(layout.numel)

    def begin(self) -> Flow:
        self.step += 1
        torch.add(self.gradients[0], self.gradients[1], alpha=float(self.step % 7), out=self.flat)
        ctx = Context(
            self.rank, self.world, self.step, self.bucket, arena=self.arena, watch=self.reducer.stateful
        )  # fmt: skip
        return flow(self.reducer, Bucket(self.flat, self.layout), State(self.store, self.layout), ctx)


@torch.no_grad()
def _rounds(bench: Sequence[_Rank]) -> list[float]:
    """The median seconds per stage and rank of three steps or more, as time allows."""
    found: list[list[float]] = []
    begin = perf_counter()
    for number in range(9):
        seconds = _once([rank.begin() for rank in bench])
        if number >= 2:  # memory is touched, and hints are warm
            found.append(seconds)
        if len(found) >= 3 and perf_counter() - begin > _BUDGET:
            break
    return [median(stage) for stage in zip(*found, strict=True)]


def _once(flows: Sequence[Flow]) -> list[float]:
    seconds: list[float] = []
    while True:
        since = perf_counter()
        ops = [f.send(False) if seconds else next(f) for f in flows]
        seconds.append((perf_counter() - since) / len(flows))
        if isinstance(ops[0], Commit):
            break
        perform(ops)
    _commit(flows)
    return seconds
