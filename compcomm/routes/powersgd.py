"""PowerSGD: the mean matrix by its leading directions, which a power iteration follows from step to step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import isfinite, prod
from typing import Any

import torch

from ..core.context import Context
from ..core.deferred import (
    either,
    fill_nan_where,
)
from ..core.layout import Layout, Segment
from ..core.reducer import Flow, Reduced, Reducer, Resolving
from ..core.source import Source, Target
from ..core.state import Merge, Slot, State
from ..core.traits import Traits
from .power_step import PowerStep, SentFactors

ops = torch.ops.compcomm
ERRORS = ("aggregate", "local")


@dataclass(frozen=True, repr=False)
class PowerSGD(Reducer):
    """out = P Q^T with P = orth(mean_i M_i orth(Q_old)), Q = mean_i M_i^T P, M_i = E_i + g_i; E_i <- M_i - P Q^T.

    A parameter of two or more dimensions is the matrix of shape[0] = n rows and m columns; it is sent as P (n x r) and
    Q (m x r), r = min(rank, n, m), where that is worth it: (n + m) r min_ratio < n m. All other parameters travel
    exact, in the first of the two all-reduces of a bucket. Each matrix is orthonormalised on its own, by Gram-Schmidt
    in double precision; a column that adds nothing becomes zero (so a zero gradient gives zero), and is drawn anew.

    Every step is one power iteration: a mean of the M_i of rank r or less is sent whole (up to rounding), and one that
    stays the same is met by its best approximation of rank r. Bytes per rank and matrix: 2 (W-1)/W * 4 r (n + m). It
    sends what sums, so neither bytes nor time grow with W. Works with any number of buckets, of any size.

    Args:
        rank: columns of the factors, 1 or more.
        warm_start: begin with the last step's Q; else with a random one in every step (N(0, 1), equal on all ranks),
            which follows nothing and so needs feedback more.
        min_ratio: how many times smaller the factors must be than the matrix.
        alternate: send one factor per step, P in even steps (Q, orthonormalised, is the last one), Q in odd steps. Half
            the bytes, one all-reduce, half the work; here (n + m) / 2 counts. ``cost`` gives an even step's. Which rows
            are zero on every rank goes along: n / floor(24 / log2(W + 1)) numbers of fp32.
        error: what a rank keeps: "aggregate", M_i - P Q^T, its distance from what all applied; or "local",
            M_i - P Q_i^T with its own Q_i (alternate, even steps: P_i), what it failed to send. Equal in the mean.
        ranks: (name, rank) of the parameters that have another rank, "*" for all that are not named; a dictionary
            will do. Which parameters travel exact is settled by ``rank`` alone.
        most: the largest rank that memory has room for, where ranks change while training: columns that are not in
            use are forgotten, and drawn anew when they come back. 0: as many as are in use.

    It has its own error feedback: sum of outs + mean residual = sum of mean gradients. No delta: one iteration from a
    given Q may send nothing of a matrix.

    State: "residual", fp32, n m elements, MEAN; with warm_start "q", m r elements, and with alternate "p", n r, equal
    on all ranks (REPLICATED). A step that any rank found non-finite is given back to the residual.

    Source: Vogels, Karimireddy, Jaggi 2019 (arXiv:1905.13727), Algorithms 1 and 2. Here nothing counts steps before
    compression begins: use Warmup(1000, PowerSGD(...)).
    """

    rank: int
    warm_start: bool = True
    min_ratio: float = 2
    alternate: bool = False
    error: str = "aggregate"
    ranks: tuple[tuple[str, int], ...] = ()
    most: int = 0

    tunable = "rank"

    def __post_init__(self) -> None:
        object.__setattr__(self, "ranks", _pairs(self.ranks))
        call = repr(self)
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise ValueError(f"{call}: the rank is an integer, 1 or more; 1 to 4 is usual.")
        number = isinstance(self.min_ratio, int | float) and not isinstance(self.min_ratio, bool)
        if not number or not (self.min_ratio > 0 and isfinite(self.min_ratio)):
            raise ValueError(f"{call}: min_ratio is a positive number: how many times smaller the factors must be.")
        for name in ("warm_start", "alternate"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"PowerSGD({name}={getattr(self, name)!r}): give True or False.")
        if isinstance(self.most, bool) or not isinstance(self.most, int) or self.most < 0:
            raise ValueError(f"PowerSGD(most={self.most!r}): the largest rank that memory has room for, 0 or more.")
        if self.error not in ERRORS:
            raise ValueError(f"{call}: error is one of {', '.join(map(repr, ERRORS))}.")

    def _feedback_hint(self, scheme: str) -> str:
        return f"It has feedback already: use {self!r} as it is."

    @cached_property
    def traits(self) -> Traits:
        return Traits(stateful=True)

    def resolve(self, to: Resolving) -> Reducer:
        if to.rows:
            raise ValueError(
                f"{self!r}: it needs whole matrices, and fully_shard cuts them by rows, each for a rank of its own. "
                f"Use it between nodes, attach(..., between='replicate'), where a shard is a matrix; or "
                f"Rotated(LloydMax(4)), which needs no memory."
            )
        return self

    def check(self, layout: Layout) -> None:
        for s in layout.segments:
            if s.numel and len(s.shape) > 1 and not s.whole and _rows(s) is None:
                raise ValueError(
                    f"{self!r}: elements {s.offset} to {s.offset + s.numel} of {s.name!r} {list(s.shape)} are no whole "
                    f"rows, so no matrix. Cut parameters by rows, or not at all."
                )

    def sizes(self, segment: Segment) -> tuple[int, int, int] | None:
        """(n, m, r) of a matrix that is sent as factors; None for a parameter that travels exact. A shard of whole rows
        is a matrix too."""
        found = _rows(segment) if len(segment.shape) > 1 and segment.numel else None
        if found is None:
            return None
        n, m = found
        r = min(self.rank, n, m)
        sent = (n + m) * r / (2 if self.alternate else 1)
        if sent * self.min_ratio >= n * m:
            return None
        if self.ranks:
            named = _ranks(self)
            r = min(named.get(segment.name, named.get("*", self.rank)), n, m)
        return n, m, r

    def room(self, segment: Segment) -> int:
        """Columns that memory has for a matrix that is sent as factors."""
        sizes = self.sizes(segment)
        if sizes is None:
            return 0
        n, m, r = sizes
        return max(r, min(self.most, n, m))

    def exact(self, segment: Segment) -> bool:
        return self.sizes(segment) is None

    def slots(self, segment: Segment, world: int) -> Mapping[str, Slot]:
        sizes = self.sizes(segment)
        if sizes is None:
            return {}
        n, m, _ = sizes
        r = self.room(segment)
        slots = {"residual": Slot(Merge.MEAN, pending=True)}
        if self.warm_start:
            slots["q"] = Slot(Merge.REPLICATED, m * r)
        if self.warm_start and self.alternate:
            slots["p"] = Slot(Merge.REPLICATED, n * r)
        return slots

    def reduce(self, source: Source, target: Target, state: State, ctx: Context) -> Flow:
        if source.add is not None:
            raise TypeError(f"{self!r} holds its own memory: it takes a gradient, not Source(..., add=).")
        work, out, accumulate = PowerStep(self, source, state, ctx), target.out, target.accumulate
        factors = yield from (work.one() if self.alternate else work.both())
        if not work.real:
            return Reduced()
        exact, scale = work.form.exact(out.layout), target.scale / ctx.world
        message = work.first.view(torch.uint8).unsqueeze(0)
        ops.dense_decode(message, exact, work.skip, out.flat, scale, accumulate)
        ctx.bad = either(ctx.bad, work.bad)
        if factors is None:
            out.fill_(float("nan"))
            return Reduced()
        table = work.form.matrices(work.residual.layout, out.layout)
        scale = target.scale / ctx.unscale
        ops.lowrank_reconstruct(work.residual.flat, out.flat, *factors, table, work.skip, scale, accumulate, 1.0)
        fill_nan_where(out, work.bad)
        sent = SentFactors(work.form, factors, work.skip)

        def on_rollback() -> None:
            sent.add_(work.residual)
            for held, before in work.replaced:  # the next step follows what the last good one found
                held.copy_(before)

        return Reduced(sent, on_rollback=on_rollback)


def _rows(segment: Segment) -> tuple[int, int] | None:
    """The rows that a segment has of its parameter, and their length; None where it ends within one."""
    m = prod(segment.shape[1:])
    return None if segment.offset % m or segment.numel % m else (segment.numel // m, m)


@lru_cache(maxsize=256)
def _ranks(reducer: PowerSGD) -> dict[str, int]:
    return dict(reducer.ranks)


def _pairs(ranks: Any) -> tuple[tuple[str, int], ...]:
    """``ranks`` as a value that can be hashed."""
    found = tuple(ranks.items()) if isinstance(ranks, Mapping) else tuple(tuple(pair) for pair in ranks)
    for pair in found:
        if len(pair) != 2 or not isinstance(pair[0], str) or isinstance(pair[1], bool) or not isinstance(pair[1], int):
            raise ValueError(f"PowerSGD(ranks={ranks!r}): {pair!r} is no (name, rank).")
        if pair[1] < 1:
            raise ValueError(f"PowerSGD(ranks={ranks!r}): the rank of {pair[0]!r} is an integer, 1 or more.")
    return found
