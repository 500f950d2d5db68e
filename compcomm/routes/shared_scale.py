"""SharedScale: the ranks agree on a scale first, then sum integers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor

from ..core.collectives import AllReduce, AllReduceMax
from ..core.compressor import Compressor, ops
from ..core.context import Context
from ..core.deferred import (
    DeferredBool,
    DeferredError,
    clear,
    deferred,
    either,
    not_finite,
)
from ..core.header import Flags
from ..core.layout import Bucket, Layout, Segment
from ..core.random import key
from ..core.reducer import Flow, Reducer, Resolving
from ..core.rows import Uniform
from ..core.source import Source, Target
from ..core.state import State
from ..core.traits import Promises
from ..ops.reference.shared_scale import section
from .all_reduce import fault, place
from .base import Delivery, Route, override_status


@dataclass(frozen=True, repr=False)
class SharedScale(Route):
    """out = (N/s) (sum_r q_r)/W, where N is the largest norm of a block on any rank and q_r = round(s x_r/N).

    For ``QSGD`` and ``TernGrad``, whose levels are equally spaced: one all-reduce takes the maximum of the norms (4
    bytes per block), another sums the integers. Sums lie in [-s W, s W], so a code takes bit_length(2 s W) bits and
    32 // that many of them share a word: for QSGD(bits=4), 5.3 bits per element with 2 ranks, 6.4 with 4, 8 with 16 and
    10.7 with 64. Bytes per rank: 2 (W-1)/W times that. Two-phase sends fewer (4 bits, whatever W is), but codes twice;
    here the only loss is each rank's own, the mean of unbiased codes is unbiased, and any all-reduce carries it.

    Unbiased under random rounding, with variance (N/s)^2 sum u (1 - u) per rank, u = frac(s |x|/N): relative to the
    largest rank's norm, not to a small rank's own. Hence no delta for a single rank. With the max norm and
    ``rounding="nearest"`` all ranks together are a contraction, sum_r |x_r - C(x_r)|^2 <= (1 - 1/(W n)) sum_r |x_r|^2
    (the element at the norm is exact), and error feedback accepts it; others it refuses. No state.

    Source: Wen et al. 2017 (arXiv:1705.07878), section 3.3, scaler sharing, there for ternary gradients.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if _uniform(self.compressor) is None:
            raise ValueError(
                f"SharedScale({self.compressor!r}): its levels are not equally spaced around zero under one norm (or "
                f"are clipped on each rank by itself), or its codes vary in length, so codes of several ranks cannot "
                f"be summed. Use SharedScale(QSGD(bits=4)) or SharedScale(TernGrad())."
            )

    @property
    def uniform(self) -> Uniform:
        """The compressor's levels."""
        found = _uniform(self.compressor)
        assert found is not None
        return found

    def promises(self, segment: Segment) -> Promises:
        return Promises(1.0 if self.exact(segment) else None)

    def contractive(self, scheme: str) -> Reducer:
        if self.uniform.stochastic or self.uniform.norm2:
            raise ValueError(
                f"{scheme}({self!r}): no contraction: a rank whose gradient is small beside another's would keep "
                f"an error larger than the gradient. Use SharedScale(QSGD(bits=4, rounding='nearest'))."
            )
        return self

    def resolve(self, to: Resolving) -> Reducer:
        if to.rows:
            raise ValueError(
                f"{self!r}: it sums integers for all ranks, and here each wants its own row of the mean alone: twice "
                f"the bytes. Use {self.compressor!r}: every payload then goes one hop."
            )
        return self

    def reduce(self, source: Source, target: Target, state: State, ctx: Context) -> Flow:
        layout, u, rng = source.layout, self.uniform, ctx.rng
        x, add, decay, add_scale = source
        form = _form(self.compressor, layout, ctx.world, ctx.seed)
        flat, at = (None, None) if add is None else add
        status = ctx.buffer("sent status", 1 + form.count).zero_()
        peaks = ctx.buffer("peaks", 3 + form.count + form.norms, torch.float32)
        norms = peaks[3 + form.count :].view(torch.uint8)
        sent, total = ctx.buffer("sent", form.nbytes), ctx.buffer("total", form.nbytes)
        real = not sent.is_meta
        if real:
            ops.dense_encode(x.flat, flat, sent, form.exact(x.layout, at), status, decay, add_scale)
            inputs = (x.flat, flat, norms, form.scaled(x.layout, at), status, decay, add_scale)
            ops.shared_norms(*inputs, u.levels, u.norm2, u.block)
            override_status(status, ctx)
            peaks[:1].fill_(place(ctx))
            peaks[1:2].fill_(-place(ctx))
            peaks[2:3], peaks[3 : 3 + form.count] = status[:1], status[1:]
        yield AllReduceMax(peaks)
        flags = _flags(peaks, form.count, ctx)
        if real:
            coded = form.coded(x.layout)
            ops.shared_encode(
                x.flat, norms, sent, coded, form.width, u.levels, u.stochastic, u.block, rng.step, rng.rank
            )
            sent[-4:].view(torch.int32).fill_(1 + place(ctx))  # the seal: a peer that failed sends another
            total.copy_(sent)
        exact, words = total[: form.split].view(torch.float32), total[form.split :].view(torch.int32)
        if exact.numel():
            yield AllReduce(exact)
        yield AllReduce(words)
        if real:
            flags = flags._replace(bad=either(flags.bad, _seal(words[-1:], ctx)))
        if ctx.watch:
            lost = not_finite(exact)
            flags = flags._replace(bad=either(flags.bad, lost))
            clear(exact, lost)  # what accumulates must not take in an infinity
        delivery = _Shared(source, target, ctx)
        delivery.flags, delivery.parts = flags, (form, u, total, norms)
        delivery.decode(1.0, target.accumulate)
        if flags.zero:  # given back: the host throws these segments' means away
            _decode(form, u, sent, norms, x, 1 - flags.skip, 1.0, True, 1)
        return delivery.finish(_Sent(form, u, sent, norms, flags.skip))


def _uniform(compressor: Compressor) -> Uniform | None:
    return getattr(compressor, "uniform", None)


class _Shared(Delivery):
    """The sum of all ranks' codes, under the shared norms."""

    parts: tuple[_Form, Uniform, Tensor, Tensor]

    def decode(self, sign: float, accumulate: bool) -> None:
        out, world = self.target.out, self.ctx.world
        if not out.flat.is_meta:
            scale = sign * self.target.scale / world
            _decode(*self.parts, out, self.flags.skip, scale, accumulate, world)


def _flags(peaks: Tensor, count: int, ctx: Context) -> Flags:
    if peaks.is_meta:
        return Flags.clean(count)
    if deferred(peaks):
        failed = peaks[0] == float("inf")
        moved = ((peaks[0] != place(ctx)) | (peaks[1] != -place(ctx))) & ~failed
        outcome = torch.cat(((peaks[2:3] > 0) | failed | moved, peaks[3 : 3 + count] == 0)).to(torch.uint8)
        kind = failed.long() + 2 * moved.long()
        ctx.faults.append(DeferredError(kind.view(1), partial(fault, ctx.step, ctx.bucket)))
        return Flags(outcome[:1], outcome[1:], True)
    first, second, bad = peaks[:3].tolist()
    if first == float("inf") or (first, second) != (place(ctx), -place(ctx)):
        raise fault(ctx.step, ctx.bucket, 1 if first == float("inf") else 2)
    zero = peaks.numpy()[3 : 3 + count] == 0
    return Flags(bad > 0, torch.from_numpy(zero.view("u1")), bool(zero.any()))


def _seal(word: Tensor, ctx: Context) -> DeferredBool:
    """Whether the last word of the sum is not what it is where no peer failed; an error where that can be told."""
    due = ctx.world * (1 + place(ctx))
    if deferred(word):
        broken = word != due
        ctx.faults.append(DeferredError(broken.long(), partial(fault, ctx.step, ctx.bucket)))
        return broken.to(torch.uint8)
    if int(word) != due:
        raise fault(ctx.step, ctx.bucket, 1)
    return False


class _Form:
    """Where everything lies: exact segments (fp32), words and a seal in one buffer, norms in another."""

    def __init__(self, compressor: Compressor, layout: Layout, world: int, seed: int) -> None:
        uniform = _uniform(compressor)
        assert uniform is not None
        self.count, self.seed = len(layout.segments), seed
        self.width = (2 * uniform.levels * world).bit_length()
        if self.width > 24:
            raise ValueError(
                f"SharedScale({compressor!r}): sums over {world} ranks need {self.width} bits, and integers of up to "
                f"24 are exact in fp32. Use fewer levels, or TwoPhase(...), whose payloads are not summed."
            )
        self.norms = self.nbytes = 0
        self._exact: list[tuple[int, Segment, int]] = []
        self._coded: list[tuple[int, Segment, int, int]] = []
        for number, s in enumerate(layout.segments):
            if s.numel and compressor.exact(s):
                self._exact.append((number, s, self.nbytes))
                self.nbytes += 4 * s.numel
        self.split = self.nbytes
        for number, s in enumerate(layout.segments):
            if s.numel and not compressor.exact(s):
                self._coded.append((number, s, 4 * self.norms, self.nbytes))
                self.norms += -(-s.numel // uniform.block)
                self.nbytes += section(s.numel, self.width)
        self.nbytes += 4  # the seal
        self._tables: dict[object, Tensor] = {}

    def _keep(self, cached: object, rows: list[list[int]]) -> Tensor:
        return self._tables.setdefault(cached, torch.tensor(rows, dtype=torch.int64).view(-1, 8))

    def exact(self, x: Layout, add: Layout | None = None) -> Tensor:
        """Rows of what travels as it is."""
        found = self._tables.get(("exact", x, add))
        if found is not None:
            return found
        rows = [[x.position(s), _at(add, s), s.numel, wire, 0, 0, 0, n] for n, s, wire in self._exact]
        return self._keep(("exact", x, add), rows)

    def scaled(self, x: Layout, add: Layout | None) -> Tensor:
        """Rows whose norms are taken: ``wire`` is the byte among the norms."""
        found = self._tables.get(("norms", x, add))
        if found is not None:
            return found
        rows = [[x.position(s), _at(add, s), s.numel, norm, 0, 0, 0, n] for n, s, norm, _ in self._coded]
        return self._keep(("norms", x, add), rows)

    def coded(self, x: Layout) -> Tensor:
        """Rows of words: ``add`` is the byte among the norms."""
        found = self._tables.get(("coded", x))
        if found is not None:
            return found
        rows = [
            [x.position(s), norm, s.numel, word, s.offset, key(self.seed, s.name), 0, n]
            for n, s, norm, word in self._coded
        ]
        return self._keep(("coded", x), rows)


def _at(layout: Layout | None, segment: Segment) -> int:
    return -1 if layout is None else layout.position(segment)


_form = lru_cache(maxsize=4096)(_Form)


def _decode(
    form: _Form, u: Uniform, sums: Tensor, norms: Tensor, out: Bucket, skip: Tensor, scale: float, add: bool, world: int
) -> None:
    """out (+)= scale * the sum of ``world`` ranks' payloads."""
    ops.dense_decode(sums.unsqueeze(0), form.exact(out.layout), skip, out.flat, scale, add)
    ops.shared_decode(
        sums, norms, form.coded(out.layout), skip, out.flat, scale, add, form.width, u.levels, u.block, world
    )


class _Sent:
    """An ``Update``: this rank's own codes, under the shared norms."""

    def __init__(self, form: _Form, uniform: Uniform, sent: Tensor, norms: Tensor, skip: Tensor) -> None:
        self._parts, self._skip = (form, uniform, sent, norms), skip

    def add_(self, into: Bucket, scale: float = 1.0) -> None:
        _decode(*self._parts, into, self._skip, scale, True, 1)

    def zero_(self, into: Bucket) -> None:
        for s in into.layout.segments:
            into.flat[s.start : s.stop] = 0.0

    def dense(self, layout: Layout) -> Bucket:
        bucket = Bucket(torch.zeros(layout.numel, dtype=torch.float32, device=self._skip.device), layout)
        self.add_(bucket)
        return bucket
