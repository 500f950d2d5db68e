"""Cases of reducers: steps of a few ranks in one process, where one message arrives as nobody sent it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import count
from random import Random

import torch
from torch import Tensor

from compcomm.core.collectives import (
    AllGather,
    AllToAll,
    Collective,
    Commit,
)
from compcomm.core.context import Arena, Context
from compcomm.core.layout import Bucket
from compcomm.core.reducer import Reducer, flow
from compcomm.core.state import State, Store
from compcomm.core.structure import between_steps, has_review
from compcomm.routes.choose import settle
from compcomm.testing.errors import same_bits
from compcomm.testing.inputs import coding, model_layout
from compcomm.testing.simulated import gradients, pack
from compcomm.transports.simulator import perform
from tests.fuzz.damage import damage
from tests.fuzz.outcome import Failure, agree, implementations, observe

STEPS = 2
LAYOUT = model_layout(("embedding", "layer.bias", "head"))
NEVER = -1


def case(described: Reducer, random: Random) -> str:
    """Two steps, and a damaged delivery in one of them; says what it was."""
    world, at, when = random.choice((2, 2, 3)), random.choice((0, 1, 5)), random.randrange(6)
    reducer, seed, alone = settle(coding(described), world), random.getrandbits(64), random.random() < 0.3
    said = f"{reducer!r}, {world} ranks, step {at}, delivery {when}, {'one rank' if alone else 'all'}, damage {seed}"

    def run() -> list[Tensor]:
        return _steps(reducer, world, at, _Wire(when, seed, alone))

    try:
        found = {name: observe(name, run) for name in implementations()}
        if not _repeats(reducer):
            del found["reference"]
        agree(found)
    except Failure as failure:
        raise Failure(f"{said}: {failure}") from failure
    return said


@lru_cache(maxsize=1024)
def _repeats(reducer: Reducer) -> bool:
    """Whether the reference has the kernels' bits on true messages; PowerSGD's products may differ by rounding."""
    found = [observe(n, lambda: _steps(reducer, 2, 0, _Wire(NEVER, 0, False))) for n in implementations()[:2]]
    return all(same_bits(a, b) for a, b in zip(*(outcome.results for outcome in found), strict=True))


class _Wire:
    """Delivers, and damages the delivery of that number: the same bytes on every rank, or on the last one alone."""

    def __init__(self, when: int, seed: int, alone: bool) -> None:
        self._numbers, self._when, self._seed, self._alone = count(), when, seed, alone

    def carry(self, group: Sequence[Collective]) -> None:
        _deliver(group)
        if next(self._numbers) != self._when:
            return
        for c in group[-1:] if self._alone else group:
            into = c.recv if isinstance(c, AllGather | AllToAll) else c.buffer  # type: ignore[attr-defined]
            damage(into.view(torch.uint8).numpy(), [0, *_starts(c)], Random(self._seed))


def _starts(c: Collective) -> Iterator[int]:
    """Where the ranks' messages begin in what is received."""
    if isinstance(c, AllGather):
        yield from range(0, c.recv.numel(), max(1, c.send.numel()))
    elif isinstance(c, AllToAll):
        for i in range(len(c.recv_splits)):
            yield sum(c.recv_splits[:i])


def _deliver(group: Sequence[Collective]) -> None:
    """As the simulator does, but that a rank which was lied to about a length gets what there is."""
    if isinstance(group[0], AllGather):
        for c in group:
            _fill(c.recv.chunk(len(group)), [other.send for other in group])  # type: ignore[attr-defined]
    elif isinstance(group[0], AllToAll):
        parts = [c.send.split(c.send_splits) for c in group]  # type: ignore[attr-defined]
        for rank, c in enumerate(group):
            _fill(c.recv.split(c.recv_splits), [p[rank] for p in parts])  # type: ignore[attr-defined]
    else:
        perform(group)


def _fill(into: Sequence[Tensor], given: Sequence[Tensor]) -> None:
    for to, part in zip(into, given, strict=True):
        size = min(to.numel(), part.numel())
        to[:size] = part[:size]


def _steps(reducer: Reducer, world: int, first: int, wire: _Wire) -> list[Tensor]:
    """The means of every rank and step."""
    stores = [Store(reducer, rank, world) for rank in range(world)]
    arenas, means = [Arena() for _ in stores], list[Tensor]()
    for step in range(first, first + STEPS):
        buckets = [pack(g, LAYOUT) for g in gradients(world, step)]
        contexts = [Context(rank, world, step, seed=3, arena=arena) for rank, arena in enumerate(arenas)]
        for store in stores:
            store.declare(LAYOUT)
        flows = [
            flow(reducer, Bucket(b.flat, LAYOUT), State(store, LAYOUT), ctx)
            for b, store, ctx in zip(buckets, stores, contexts, strict=True)
        ]
        pending = [next(f) for f in flows]
        while not isinstance(pending[0], Commit):
            wire.carry(pending)
            pending = [f.send(False) for f in flows]
        for f, ctx in zip(flows, contexts, strict=True):
            try:
                f.send(bool(ctx.bad))
            except StopIteration:
                continue
            raise Failure("a flow went on after its Commit.")
        means += [b.flat for b in buckets]
        if has_review(reducer, step):
            _review(reducer, stores, contexts, wire)
    return means


def _review(reducer: Reducer, stores: Sequence[Store], contexts: Sequence[Context], wire: _Wire) -> None:
    reviews = [between_steps(reducer, s.segments(), s, ctx) for s, ctx in zip(stores, contexts, strict=True)]
    while pending := [c for c in (next(review, None) for review in reviews) if c is not None]:
        wire.carry(pending)
