"""The bandwidth below which compression pays, predicted from a small sample before the first step."""

from __future__ import annotations

from time import perf_counter
from typing import NamedTuple

import torch

from ..bucket import Bucket, Layout, Segment
from ..reducer import Reducer
from ..transports.dry_run import cost
from ..transports.simulate import Simulator

_SAMPLE = 1 << 18


class Breakeven(NamedTuple):
    """Bytes per rank and step, the kernels' seconds, and where both sides of the scale are equal.

    ``bits_per_second`` = (1 - 1/ratio) * dense bytes * 8 / kernel seconds: the link on which the seconds that the
    kernels cost are the seconds that the bytes save, if nothing overlaps.
    """

    sent: int
    dense: int
    seconds: float

    @property
    def ratio(self) -> float:
        return self.dense / self.sent if self.sent else float("inf")

    @property
    def bits_per_second(self) -> float:
        saved = self.dense - self.sent
        return max(0.0, saved * 8 / self.seconds) if self.seconds > 0 else float("inf")


def breakeven(reducer: Reducer, layout: Layout, world: int, rank: int = 0) -> Breakeven:
    """Predicts for a settled reducer: bytes from a dry run, seconds from a few parameters run through the simulator."""
    sent, dense, _ = cost(reducer, layout, world, rank)
    seconds = kernel_seconds(reducer, layout, world) if sent != dense else 0.0
    return Breakeven(sent, dense, seconds)


def kernel_seconds(reducer: Reducer, layout: Layout, world: int) -> float:
    """Seconds that one rank of ``world`` spends coding and decoding one step, extrapolated from a sample.

    The sample takes parameters from all over the model until about 2**18 elements per rank (fewer for many ranks), so
    it lies in the cache more than a whole model does: an optimistic figure.
    """
    sample = _sample(layout, max(1 << 14, _SAMPLE * 4 // max(4, world)))
    total = sum(s.numel for s in sample.segments)
    if not total:
        return 0.0
    generator = torch.Generator().manual_seed(0)
    simulator = Simulator(reducer, world)
    buckets = [[Bucket(torch.randn(sample.numel, generator=generator), sample)] for _ in range(world)]
    best = float("inf")
    for _ in range(3):
        since = perf_counter()
        simulator.step(buckets)
        best = min(best, perf_counter() - since)
    return best / world * sum(s.numel for s in layout.segments) / total


def _sample(layout: Layout, target: int) -> Layout:
    """Every n-th parameter, the large ones by a piece of their first dimension."""
    taken: list[tuple[str, tuple[int, ...]]] = []
    wanted = [s for s in layout.segments if s.numel]
    share = min(1.0, target / max(1, sum(s.numel for s in wanted)))
    for s in wanted:
        taken.append((s.name, _cut(s, share)))
    return Layout.of(taken)


def _cut(segment: Segment, share: float) -> tuple[int, ...]:
    shape = segment.shape
    return (max(1, round(shape[0] * share)), *shape[1:]) if shape else shape
