"""AllReduce: payloads that may be summed cross the wire as numbers, and one decoding serves all ranks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from math import isnan

import torch
from torch import Tensor

from ..core.collectives import AllReduce as Sum
from ..core.context import Context
from ..core.deferred import (
    DeferredError,
    clear,
    deferred,
    either,
    not_finite,
)
from ..core.header import Flags, PeerError
from ..core.packing import ops, pack
from ..core.reducer import Flow
from ..core.source import Source, Target
from ..core.state import State
from ..core.traits import Traits
from ..ops.scratch import scratch
from ..ops.work import on
from .base import RoundTrip, Route

_PLACES = torch.tensor([1 << i for i in range(8)], dtype=torch.uint8)


@dataclass(frozen=True, repr=False)
class AllReduce(Route):
    """out = (1/W) decode(sum_r encode(x_r)), for linear compressors.

    Bytes per rank: 2 (W-1)/W times the payload's, whatever W is. The header travels as fp32 numbers that sum: a
    number made of step and bucket, how many ranks met a non-finite value, for each segment how many had a nonzero
    gradient (four bytes per segment), and where the compressor does not keep zeros, the same for the rows of matrices
    (``Digits``). Where the coded sections are summed in another dtype than fp32, they take a second all-reduce.

    The order in which a ring adds depends on how it cuts the buffer, so results agree over bucket cuts within
    W * 2**-24 * sum|x_i| (of the payload's precision), and to the bit over the ranks.
    """

    @cached_property
    def traits(self) -> Traits:
        return super().traits._replace(half=True, weights=self.compressor.dtype == torch.float32)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.compressor.linear:
            name = type(self.compressor).__name__
            raise ValueError(
                f"AllReduce({self.compressor!r}): {name} payloads cannot be summed: C(x) + C(y) does not decode to "
                f"C(x + y). Use AllGather({name}(...)) or TwoPhase({name}(...)), or a linear compressor such as "
                f"RandK(...), whose indices are shared."
            )

    def reduce(self, source: Source, target: Target, state: State, ctx: Context) -> Flow:
        c, x, packing = self.compressor, source.x, pack(self.compressor, source.layout, apart=True)
        lines = packing.lines(*source.layouts)
        zero = ctx.buffer("zero rows", packing.apart)
        if lines is not None:
            ops.zero_rows_mark(x.flat, None if source.add is None else source.add.flat, zero, lines.table)
        trip = _Summed(c, packing, source, target, ctx)
        payload = trip.encode()
        digits = digits_of(ctx.world, packing.apart)
        counts = 2 + packing.count + digits.count
        front = max(4 * counts, packing.header)  # the sums, seen from the header's place on, are a message to decode
        room = ctx.buffer("sum", front + packing.nbytes - packing.header)
        total, message = room[front - 4 * counts :], room[front - packing.header :]
        flags, body = total[: 4 * counts].view(torch.float32), total[4 * counts :]
        body.copy_(payload.wire[packing.header :])
        split = 4 * counts + packing.exact_bytes
        exact, coded = total[:split].view(torch.float32), total[split:].view(c.dtype)
        if ctx.weights is not None:  # numbers, so the payload of w*y is w times that of y
            exact.mul_(ctx.weights[ctx.rank] * ctx.world)
            coded.mul_(ctx.weights[ctx.rank] * ctx.world)
        flags[:1].fill_(place(ctx))  # not flags[0] = ..., for which the host waits for a device
        flags[1:2], flags[2 : 2 + packing.count] = payload.status[:1], payload.status[1:]
        if digits.count:
            digits.write(zero, flags[2 + packing.count :])
        if c.dtype == torch.float32:
            yield Sum(total.view(torch.float32))
        else:
            yield Sum(exact)
            if coded.numel():
                yield Sum(coded)
        found = read_flags(flags[: 2 + packing.count], packing.count, ctx)
        if lines is not None:
            digits.read(flags[2 + packing.count :], zero)
            ops.zero_rows_clear(x.flat, zero, lines.table)
            payload = payload._replace(bits=zero)
        if ctx.watch:
            if coded.dtype == exact.dtype:
                lost = not_finite(body.view(exact.dtype))
            else:
                lost = either(not_finite(exact), not_finite(coded))
            found = found._replace(bad=either(found.bad, lost))
            clear(body, lost)  # what accumulates must not take in an infinity
        trip.wires, trip.bits, trip.flags = message.unsqueeze(0), payload.bits, found
        return trip.deliver(payload)


class _Summed(RoundTrip):
    """One message, the sum of all ranks': weights are in it already, and ``bits`` of its zero rows lie apart."""

    bits: Tensor | None = None

    def decode(self, sign: float, accumulate: bool) -> None:
        scale = sign * self.target.scale / self.ctx.world
        self.compressor.decode_(
            self.wires, Target(self.target.out, scale, accumulate), self.rng, self.packing,
            skip=self.flags.skip, bits=self.bits,
        )  # fmt: skip


class Digits:
    """How many ranks have a row that is not zero, as digits of numbers that sum: a digit counts to ``world``, and fp32
    holds as many as fit 24 bits, 15 between two ranks, 7 among eight.

    Where payloads are sums, what one rank has in a row cannot be told from what another has: a row is zero if it is so
    on every rank.
    """

    def __init__(self, world: int, nbytes: int) -> None:
        self.base, self.rows = world + 1, 8 * nbytes
        self.each = 1
        while self.base ** (self.each + 1) <= 1 << 24:
            self.each += 1
        self.count = -(-self.rows // self.each)
        powers = torch.tensor([self.base**i for i in range(self.each)], dtype=torch.int64)
        self._powers, self._numbers = powers, powers.float()

    def write(self, bits: Tensor, to: Tensor) -> None:
        """Numbers for the bits of zero rows."""
        if bits.is_meta:
            return
        moved = scratch("digits", self.count * self.each, device=bits.device)
        moved[self.rows :].zero_()
        nonzero_rows(bits, moved[: self.rows])
        digits = moved.view(-1, self.each).mul_(on(self._numbers, bits.device))
        torch.sum(digits, 1, out=to)

    def read(self, numbers: Tensor, bits: Tensor) -> None:
        """The bits of rows that are zero on all ranks, from the sums."""
        if bits.is_meta:
            return
        device = bits.device
        finite = torch.nan_to_num(numbers, 0.0, 0.0, 0.0, out=scratch("sums", self.count, device=device))
        sums = scratch("whole sums", self.count, torch.int64, device=device).copy_(finite)
        counts = scratch("counts", self.count * self.each, torch.int64, device=device)
        torch.floor_divide(sums.view(-1, 1), on(self._powers, device), out=counts.view(-1, self.each))
        counts.remainder_(self.base)
        zero = scratch("zero", self.rows, torch.bool, device=device)
        torch.logical_not(counts[: self.rows], out=zero)
        eights = zero.view(torch.uint8).view(-1, 8).mul_(on(_PLACES, device))
        torch.sum(eights, 1, dtype=torch.uint8, out=bits)


digits_of = lru_cache(maxsize=4096)(Digits)


def nonzero_rows(bits: Tensor, to: Tensor) -> Tensor:
    """One fp32 number per bit, the low bit of each byte first: 0 where it is set, and the row zero, else 1."""
    each = scratch("bits", to.numel(), torch.uint8, device=bits.device)
    torch.bitwise_and(bits.view(-1, 1), on(_PLACES, bits.device), out=each.view(-1, 8))
    return torch.logical_not(each, out=to)


def place(ctx: Context) -> int:
    """Step and bucket as a number whose sum over up to 4096 ranks fp32 holds exactly."""
    return (ctx.step * 61 + ctx.bucket) % 4093


def read_flags(flags: Tensor, count: int, ctx: Context) -> Flags:
    """What the summed header says: place, non-finite values met, nonzero gradients of ``count`` segments."""
    if flags.is_meta:
        return Flags.clean(count)
    if deferred(flags):
        outcome = torch.empty(1 + count, dtype=torch.uint8, device=flags.device)
        kind = torch.empty(1, dtype=torch.int64, device=flags.device)
        ops.sums_read(flags, outcome, kind, float(ctx.world * place(ctx)))
        ctx.faults.append(DeferredError(kind, partial(fault, ctx.step, ctx.bucket)))
        return Flags(outcome[:1], outcome[1:], True)
    at, bad = flags[:2].tolist()
    if isnan(bad) or at != ctx.world * place(ctx):
        raise fault(ctx.step, ctx.bucket, 1 if isnan(bad) else 2)
    zero = flags.numpy()[2:] == 0
    return Flags(bad > 0, torch.from_numpy(zero.view("u1")), bool(zero.any()))


def fault(step: int, bucket: int, kind: int) -> PeerError:
    """The error for a sum that a peer spoilt: 1, it failed; 2, it is elsewhere."""
    if kind == 1:
        return PeerError(f"a peer failed in step {step}, bucket {bucket}; its own log has the error.")
    return PeerError(f"in step {step}, bucket {bucket}, a peer sent a payload of another step or bucket.")
