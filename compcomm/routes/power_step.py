"""One bucket's step of PowerSGD: a power iteration by sums of factors, under the flags that go ahead of them."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..compressors.sketch import quantiles
from ..core.collectives import AllReduce as Sum
from ..core.collectives import Collective
from ..core.context import Context
from ..core.deferred import DeferredBool, DeferredError, clear, deferred, either, not_finite
from ..core.layout import Bucket, Layout
from ..core.source import Source
from ..core.state import State
from ..ops.work import on
from .all_reduce import fault, nonzero_rows, place, read_flags
from .factor_layout import FactorLayout, LowRank, factor_layout

ops = torch.ops.compcomm


class Factored(LowRank, Protocol):
    """What a step asks of its reducer."""

    @property
    def warm_start(self) -> bool: ...

    @property
    def error(self) -> str: ...


class Factors(NamedTuple):
    """The mean's, and what this rank takes out of its residual."""

    p: Tensor
    q: Tensor
    p_sent: Tensor
    q_sent: Tensor


class SentFactors:
    """An ``Update``: what a step took out of this rank's residual. Exact parameters, which have none, are left out."""

    def __init__(self, form: FactorLayout, factors: Factors, skip: Tensor) -> None:
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


class PowerStep:
    """One bucket's step. ``first``: the buffer that is summed first, flags, exact parameters, then a factor.

    Where the device alone knows that the step is ``bad``, all goes on as in a good one, but that every matrix is
    skipped (``mark``): nothing leaves the residual.
    """

    def __init__(self, reducer: Factored, source: Source, state: State, ctx: Context) -> None:
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

    def both(self) -> Generator[Collective, bool, Factors | None]:
        """P, then Q; None after a bad step."""
        form, ctx = self.form, self.ctx
        q_old, p = self._held("q"), self._open("p")
        ops.lowrank_orthonormal(q_old, form.lines["q"])  # else P grows as the square of the gradient, and overflows
        self._refresh("q", q_old)
        self._product(ops.lowrank_project, p, q_old, self.x.flat)
        yield from self._sum_first()
        if not form.parts:
            return None if self.bad is True else Factors(p, p, p, p)
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
        return Factors(p, q, p, q if own is None else own)

    def one(self) -> Generator[Collective, bool, Factors | None]:
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
        return Factors(p, q, sent, q) if even else Factors(p, q, p, sent)

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
