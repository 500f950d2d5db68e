"""PowerSGD: the mean matrix by its leading directions, which a power iteration follows from step to step."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from math import isfinite, prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..compressors.sketch import quantiles
from ..core.collectives import AllReduce as Sum
from ..core.collectives import Collective
from ..core.context import Context
from ..core.deferred import (
    DeferredBool,
    DeferredError,
    clear,
    deferred,
    either,
    fill_nan_where,
    not_finite,
)
from ..core.layout import Bucket, Layout, Segment
from ..core.reducer import Flow, Reduced, Reducer, Resolving
from ..core.source import Source, Target
from ..core.state import Merge, Slot, State
from ..core.traits import Traits
from ..ops.work import on
from .all_reduce import fault, nonzero_rows, place, read_flags
from .factor_layout import FactorLayout, factor_layout

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
        work, out, accumulate = _Work(self, source, state, ctx), target.out, target.accumulate
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
        sent = _Sent(work.form, factors, work.skip)

        def on_rollback() -> None:
            sent.add_(work.residual)
            for held, before in work.replaced:  # the next step follows what the last good one found
                held.copy_(before)

        return Reduced(sent, on_rollback=on_rollback)


class _Factors(NamedTuple):
    """The mean's, and what this rank takes out of its residual."""

    p: Tensor
    q: Tensor
    p_sent: Tensor
    q_sent: Tensor


class _Sent:
    """An ``Update``: what a step took out of this rank's residual. Exact parameters, which have none, are left out."""

    def __init__(self, form: FactorLayout, factors: _Factors, skip: Tensor) -> None:
        self._form, self._factors, self._skip = form, factors, skip

    def add_(self, into: Bucket, scale: float = 1.0) -> None:
        table = self._form.matrices(into.layout, None)
        ops.lowrank_reconstruct(into.flat, None, *self._factors, table, self._skip, 1.0, False, -scale)

    def zero_(self, into: Bucket) -> None:
        for row in self._form.matrices(into.layout, None).tolist():
            into.flat[row[0] : row[0] + row[2] * row[3]] = 0.0

    def dense(self, layout: Layout) -> Bucket:
        bucket = Bucket(torch.zeros(layout.numel, dtype=torch.float32, device=self._skip.device), layout)
        self.add_(bucket)
        return bucket


class _Work:
    """One bucket's step. ``first``: the buffer that is summed first, flags, exact parameters, then a factor.

    Where the device alone knows that the step is ``bad``, all goes on as in a good one, but that every matrix is
    skipped (``mark``): nothing leaves the residual.
    """

    def __init__(self, reducer: PowerSGD, source: Source, state: State, ctx: Context) -> None:
        self.reducer, self.state, self.ctx = reducer, state, ctx
        x, self.add_scale = source.x, source.decay
        self.x = x
        self.form = factor_layout(reducer, x.layout, ctx.world, ctx.seed, str(x.flat.device))
        self.residual = state["residual"]
        self.table = self.form.matrices(self.residual.layout, x.layout)
        self.real = not x.flat.is_meta
        self.status = ctx.buffer("status", 1 + self.form.count)
        self.first = self.skip = self.status
        self.bad: DeferredBool = False
        self.replaced: list[tuple[Tensor, Tensor]] = []
        """Factors that memory holds since this step, and what it held before."""

    def both(self) -> Generator[Collective, bool, _Factors | None]:
        """P, then Q; None after a bad step."""
        form, ctx = self.form, self.ctx
        q_old, p = self._held("q"), self._open("p")
        ops.lowrank_orthonormal(q_old, form.lines["q"])  # else P grows as the square of the gradient, and overflows
        self._refresh("q", q_old)
        self._product(ops.lowrank_project, p, q_old, self.x.flat)
        yield from self._sum_first()
        if not form.parts:
            return None if self.bad is True else _Factors(p, p, p, p)
        second = ctx.buffer("second", 1 + form.numel["q"], torch.float32)
        q = second[1:]
        if self.bad is True:
            q.zero_()
        else:
            clear(p, self.bad)
            ops.lowrank_orthonormal(p, form.lines["p"])
            self._product(ops.lowrank_backproject, p, q, None)
        own = self._own(q)
        second[:1].fill_(place(ctx))
        yield Sum(second)
        if self.real:
            self._read_second(second[:1])
        if self.bad is True or (ctx.watch and self._mark(not_finite(second)) is True):
            return None
        self._average("q", q)
        return _Factors(p, q, p, q if own is None else own)

    def one(self) -> Generator[Collective, bool, _Factors | None]:
        """One factor, by the other: P in even steps, Q in odd ones; None after a bad step."""
        form, even = self.form, self.ctx.step % 2 == 0
        given, made = ("q", "p") if even else ("p", "q")
        held, sums = self._held(given), self._open(made)
        self._refresh(given, held)
        ops.lowrank_orthonormal(held, form.lines[given])
        p, q = (sums, held) if even else (held, sums)
        zero = self._rows_of_zeros(even)
        self._product(ops.lowrank_project if even else ops.lowrank_backproject, p, q, self.x.flat)
        own = self._own(sums)
        yield from self._sum_first()
        if self.bad is True:
            return None
        if zero is not None:  # a P that was drawn, and not measured, has something in every row
            form.digits.read(self.first[2 + form.count : form.flags], zero)
            moved = nonzero_rows(zero, self.ctx.buffer("rows", form.digits.rows, torch.float32))
            p.mul_(torch.index_select(moved, 0, form.row_of_p, out=self.ctx.buffer("kept", p.numel(), p.dtype)))
        self._average(made, sums)
        sent = sums if own is None else own
        return _Factors(p, q, sent, q) if even else _Factors(p, q, p, sent)

    def _rows_of_zeros(self, even: bool) -> Tensor | None:
        """Bits of the rows that are zero on this rank, which go into ``first``; None: nobody needs them, as there are
        no matrices, or P is measured, which has zeros where they have."""
        form = self.form
        if even or not form.digits.count or not self.real:
            self.first[2 + form.count : form.flags].zero_()
            return None
        bits = self.ctx.buffer("zero rows", form.digits.rows // 8)
        ops.zero_rows_mark(self.residual.flat, self.x.flat, bits, form.lines_of(self.residual.layout, self.x.layout))
        form.digits.write(bits, self.first[2 + form.count : form.flags])
        return bits

    def _held(self, factor: str) -> Tensor:
        """The factor that the step begins with; its zero lines are yet to be drawn."""
        if self.reducer.warm_start:
            held, used = self.state[factor].flat, self.form.used(factor)
            return held if used is None else held[used]
        return self.ctx.buffer(factor, self.form.numel[factor], torch.float32).zero_()

    def _refresh(self, name: str, factor: Tensor) -> None:
        """Draws the lines that are zero."""
        ops.lowrank_refresh(factor, self.form.lines[name], on(quantiles(), factor.device), self.ctx.step)

    def _open(self, factor: str) -> Tensor:
        """Makes ``first`` with the exact parameters in it; the room for the factor."""
        self.first = self.ctx.buffer(f"first {factor}", self.form.head + self.form.numel[factor], torch.float32)
        exact = self.form.exact(self.x.layout)
        self.status.zero_()
        ops.dense_encode(
            None, self.x.flat, self.first.view(torch.uint8), exact, self.status, 1.0, self.add_scale
        )  # fmt: skip
        return self.first[self.form.head :]

    def _product(self, op: Any, p: Tensor, q: Tensor, gradient: Tensor | None) -> None:
        scale = self.add_scale * self.ctx.unscale
        op(self.residual.flat, gradient, p, q, self.table, self.status, scale)

    def _own(self, factor: Tensor) -> Tensor | None:
        """A copy of this rank's factor where its error is its own."""
        if self.reducer.error == "aggregate":
            return None
        return self.ctx.buffer("own", factor.numel(), torch.float32).copy_(factor)

    def _average(self, name: str, sums: Tensor) -> None:
        sums.mul_(1.0 / self.ctx.world)
        if self.reducer.warm_start:
            held, used = self.state[name].flat, self.form.used(name)
            before = self.ctx.buffer(f"{name} before", held.numel(), torch.float32)
            self.replaced.append((held, before.copy_(held)))
            if isinstance(self.bad, Tensor):  # what is held stays, if it must
                sums = torch.where(self.bad != 0, held if used is None else held[used], sums)
            if used is None:
                held.copy_(sums)
            elif self.real:
                held.zero_()[used] = sums

    def _sum_first(self) -> Generator[Collective, bool, None]:
        """The first sum; ``bad`` where any rank met a non-finite value, or the sums are none."""
        ctx, flags = self.ctx, self.first[: 2 + self.form.count]
        flags[:1].fill_(place(ctx))
        flags[1:2], flags[2:] = self.status[:1], self.status[1:]
        yield Sum(self.first)
        found = read_flags(flags, self.form.count, ctx)
        self.skip = found.skip
        self._mark(found.bad)
        if ctx.watch:
            self._mark(not_finite(self.first))

    def _read_second(self, word: Tensor) -> None:
        """Looks at the number that says whether all ranks are at the same place; NaN where one failed."""
        due = self.ctx.world * place(self.ctx)
        if not deferred(word):
            if float(word) != due:
                raise fault(self.ctx.step, self.ctx.bucket, 1)
            return
        broken = ~(word == due)
        self.ctx.faults.append(DeferredError(broken.long(), partial(fault, self.ctx.step, self.ctx.bucket)))
        self._mark(broken.to(torch.uint8))

    def _mark(self, bad: DeferredBool) -> DeferredBool:
        """Takes ``bad`` in; where it is the device's, every matrix is skipped."""
        self.bad = either(self.bad, bad)
        if isinstance(self.bad, Tensor):
            self.skip = self.skip | self.bad
        return self.bad


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
