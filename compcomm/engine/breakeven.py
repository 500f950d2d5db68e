"""The bandwidth below which compression pays, predicted from a small sample before the first step."""

from __future__ import annotations

import logging
from time import perf_counter
from typing import NamedTuple

import torch

from ..core.layout import Bucket, Layout
from ..core.reducer import Reducer
from ..transports.dry_run import cost
from ..transports.simulator import Simulator
from .sample import sample_layout

_SAMPLE = 1 << 20
_log = logging.getLogger("compcomm")


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


def breakeven(reducer: Reducer, layout: Layout, world: int, rank: int = 0, *, rows: bool = False) -> Breakeven:
    """Predicts for a settled reducer: bytes from a dry run, seconds from a few parameters run through the simulator.
    ``rows``: the layout is made of one row per rank, which each wants alone.

    Seconds are a courtesy: 0.0, as where nothing is coded, when the sample cannot be run.

    Raises:
        Exception: what the reducer says against this layout; it would say so in the first step too.
    """
    sent, dense, _ = cost(reducer, layout, world, rank, rows=rows)
    seconds = 0.0
    if sent != dense:
        try:
            seconds = kernel_seconds(reducer, layout, world, rows=rows)
        except Exception as error:
            _log.info("compcomm: no prediction of the kernels' seconds (%s: %s)", type(error).__name__, error)
    return Breakeven(sent, dense, seconds)


def kernel_seconds(reducer: Reducer, layout: Layout, world: int, *, rows: bool = False) -> float:
    """Seconds that one rank of ``world`` spends coding and decoding one step, extrapolated from a sample.

    The sample takes parameters from all over the model until about 2**20 elements per rank (fewer for many ranks), so
    it lies in the cache more than a whole model does: an optimistic figure.
    """
    whole = Layout.of({s.name: s.shape for s in layout.segments}.items()) if rows else layout
    sample = sample_layout(reducer, whole, world, max(1 << 14, _SAMPLE * 4 // max(4, world)), rows=rows)
    sample = sample.sharded(world) if rows else sample
    total = sum(s.numel for s in sample.segments)
    if not total:
        return 0.0
    generator = torch.Generator().manual_seed(0)
    simulator = Simulator(reducer, world, rows=rows)
    simulator.steps = 1 << 30  # any warm-up is over
    buckets = [
        [Bucket(torch.randn(sample.numel, dtype=torch.float32, generator=generator), sample)] for _ in range(world)
    ]
    wanted = sample.equal_rows(world) if rows else (sample,) * world
    means = [[Bucket(torch.empty_like(b.flat), own) for b in row] for row, own in zip(buckets, wanted, strict=True)]
    best = float("inf")
    for _ in range(3):
        since = perf_counter()
        simulator.step(buckets, means)
        best = min(best, perf_counter() - since)
    return best / world * sum(s.numel for s in layout.segments) / total
