"""The contract of a compressor: tensor -> payload -> tensor, pure and local.

A compressor is a frozen description without tensors. It knows no ranks, keeps no memory, and promises only what its
properties declare; the contract tests in ``compcomm.testing`` hold every exported one to them.

To write one, give ``section`` (bytes on the wire), ``encode`` and ``decode``, and the properties. The base class then
handles layouts, exact small tensors, the addition of the gradient, non-finite values and the error. Where speed counts,
override ``encode_rows`` and ``decode_rows``, which treat a whole bucket in one call.

Some offer more, which is asked for by name (``getattr``) and nobody else declares:

- ``tunable``: the field that trades bytes for error, "ratio", "bits" or "rank";
- ``per_row_k``: forms that differ in it alone differ in nothing but k: one call treats rows of several densities;
- ``uniform``: its levels, where they are equally spaced around zero, for ``SharedScale``;
- ``sends_values`` and ``scatter_rows``: its elements travel as they are, for ``SparseAllReduce``;
- ``reencodes`` and ``reencode_rows``: an owner's decoding and encoding in one pass;
- ``unproven``: feedback takes it although it promises no delta.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..ops.scratch import scratch, stream
from .description import Described
from .former import OF_COMPRESSORS, asked, declared, without_find
from .layout import Bucket, Layout, Segment
from .packing import Packing, pack
from .random import Rng
from .rows import Find, Inputs, Received, Rows
from .source import Source, Target
from .state import Slot
from .zero_rows import Split

ops = torch.ops.compcomm


@dataclass(frozen=True, repr=False)
class Compressor(Described, Rows, ABC, abstract=True):
    """Base of all compressors. ``dense_below``: parameters of fewer elements, and all 1-D ones, travel exact (fp32);
    0: everything is coded."""

    linear: ClassVar[bool] = False
    """Payloads of several ranks may be summed before decoding, so an all-reduce can carry them."""
    hint: ClassVar[str] = (
        "Declare delta(numel) if it has one. Use one that has, such as TopK, SignScale() or QSGD(rounding='nearest')."
    )
    """What to use where error feedback refuses this compressor."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        declared(cls)
        without_find(cls)

    def __getattr__(self, name: str) -> Any:
        return asked(self, name, OF_COMPRESSORS)

    def __post_init__(self) -> None:
        least = getattr(self, "dense_below", 0)
        if not isinstance(least, int) or isinstance(least, bool) or least < 0:
            raise ValueError(f"{self!r}: dense_below={least!r} is not a number of elements. 0 codes everything.")

    @property
    def dtype(self) -> torch.dtype:
        """For linear compressors: as what the coded sections are summed."""
        return torch.float32

    @property
    def unbiased(self) -> bool:
        """E[decode(encode(x))] = x."""
        return False

    def delta(self, numel: int) -> float | None:
        """The contraction: E|x - C(x)|^2 <= (1 - delta)|x|^2 for every x of ``numel`` elements; None: no promise."""
        return None

    def omega(self, numel: int) -> float | None:
        """The relative variance of an unbiased compressor: E|x - C(x)|^2 <= omega |x|^2; None if it is biased."""
        return None

    def of(self, segment: Segment) -> Compressor:
        """The form in which this parameter, or a piece of it, is coded."""
        return self

    def slots(self, segment: Segment) -> Mapping[str, Slot]:
        """Memory of earlier calls, merged by DROP: a first guess that makes the next one faster, or, where selection is
        approximate by design, what it has learnt of the data. What is promised never depends on it."""
        return {}

    def encode_(
        self,
        source: Source | Bucket,
        rng: Rng,
        *,
        hints: Mapping[str, Tensor] | None = None,
        wire: Tensor | None = None,
        packing: Packing | None = None,
        message: int | None = None,
        received: Received | None = None,
        status: Tensor | None = None,
    ) -> Payload:
        """Codes ``y = decay*x + add_scale*add`` and leaves in ``x`` what was not sent.

        Args:
            source: fp32; float64 is coded in fp32, at the price of several passes more. A bucket alone: its ``x``.
            wire: uint8 buffer to write into (its header bytes are left alone).
            packing, message: how the payload is cut, and which message alone to write; default: one message.
            received: where the coded rows' mean, which ``add`` (or ``x``) has room for, comes from.
            status: uint8 memory for the payload's, 1 + segments long; default: fresh memory.
        """
        if isinstance(source, Bucket):
            source = Source(source)
        x, add, decay, add_scale = source
        wide = source.widest
        packing = packing or pack(self, wide.layout)
        size = packing.nbytes if message is None else packing.splits[message]
        device = wide.flat.device
        if wire is None:  # zeros: padding is sent too, and must not show what the memory held
            wire = torch.zeros(size, dtype=torch.uint8, device=device)
        if status is None:
            status = torch.zeros(1 + packing.count, dtype=torch.uint8, device=device)
        else:
            status.zero_()  # kernels only set bits
        payload = Payload(self, packing, wire, status, rng, message)
        if wire.is_meta:
            return payload
        if x.flat.dtype == torch.float64:
            # What was lost by rounding y to fp32 is part of the error: it is taken from y itself, so that x + sent = y.
            y = _sum_of(x, add, decay, add_scale, wide.layout)
            single = Bucket(y.flat.float(), y.layout)
            coded = self.encode_(single, rng, hints=hints, wire=wire, packing=packing, message=message)
            _leave(x, y, coded)
            return coded
        add_flat, add_layout = (None, None) if add is None else add
        exact, table, gain, lines = packing.tables(x.layout, add_layout, rng.seed, message, None)
        if exact is not None:
            ops.dense_encode(x.flat, add_flat, wire, exact, status, decay, add_scale)
        if table is not None:
            inputs = Inputs(x.flat, add_flat, wire, table, status, decay, add_scale)
            if packing.apart:  # the route marks and clears zero rows itself: their bits travel in a sum
                lines = None
            if lines is not None:  # before the kernel writes what was not sent over x
                ops.zero_rows_mark(x.flat, add_flat, wire, lines.table)
            if received is None:
                self.encode_rows(inputs, gain, rng, hints or {}, packing.find)
            else:
                reencoder: Any = self  # only compressors that say so (``reencodes``) are given ``received``
                reencoder.reencode_rows(inputs, received, gain, rng)
            if lines is not None:  # nothing was there, so nothing is left, whatever was coded
                ops.zero_rows_clear(x.flat, wire, lines.table)
        return payload

    def decode_(
        self,
        wires: Tensor,
        target: Target | Bucket,
        rng: Rng,
        packing: Packing,
        *,
        skip: Tensor | None = None,
        message: int | None = None,
        stride: int | None = None,
        weights: Sequence[float] | None = None,
        bits: Tensor | None = None,
    ) -> None:
        """target.out = (out if accumulate) + scale * sum of the W messages in ``wires`` [W, bytes]; segments that
        ``out`` lacks are passed over, those in ``skip`` count as zero. A bucket alone is written anew. ``weights``: one
        factor per message. ``bits``: which rows are zero, where that is not in the messages (``Packing.apart``)."""
        out, scale, accumulate, _ = Target(target) if isinstance(target, Bucket) else target
        if wires.is_meta:
            return
        if skip is None:
            skip = _none(packing.count, wires.device, stream(wires.device))
        if out.flat.dtype == torch.float64:  # kernels add in fp32: each message is decoded alone, and added here
            self._decode_double(wires, out, rng, packing, scale, skip, accumulate, message, stride, weights, bits)
            return
        if weights is not None:  # kernels have one factor for all messages
            for i, weight in enumerate(weights):
                one = Target(out, scale * weight, accumulate or i > 0)
                self.decode_(wires[i : i + 1], one, rng, packing, skip=skip, message=message, stride=stride, bits=bits)
            return
        exact, table, _, lines = packing.tables(out.layout, None, rng.seed, message, stride)
        if exact is not None:
            ops.dense_decode(wires, exact, skip, out.flat, scale, accumulate)
        if table is None:
            return
        if lines is None:
            self.decode_rows(wires, table, skip, out.flat, scale, accumulate, rng, packing.find)
            return
        # Rows that are zero in all messages are cleared; those that are zero in none need nothing. The rest, zero in
        # some, is decoded message by message.
        said = wires if bits is None else bits.unsqueeze(0)
        split = lines.split(said, table, accumulate)
        if len(split.rest):
            self.decode_rows(wires, split.rest, skip, out.flat, scale, accumulate, rng, packing.find)
        if split.cleared is not None:
            ops.zero_rows_clear(out.flat, said[0], split.cleared)
        if len(split.table):
            self._decode_apart(wires, said, split, skip, out.flat, scale, accumulate, rng, packing.find)

    def _decode_apart(
        self, wires: Tensor, said: Tensor, split: Split, skip: Tensor, out: Tensor, scale: float, accumulate: bool,
        rng: Rng, find: Find,
    ) -> None:  # fmt: skip
        """Message by message, as each has zero rows of its own; ``said``: the bits that say which."""
        in_place = not accumulate and out.dtype == torch.float32
        total = out if in_place else scratch("zero rows, sum", out.numel(), device=out.device)
        for r in range(len(wires)):
            to = scratch("zero rows, one", out.numel(), device=out.device) if r else total
            self.decode_rows(wires[r : r + 1], split.table, skip, to, 1.0, False, rng, find)
            ops.zero_rows_clear(to, said[r], split.lines)
            for start, stop in split.spans if r else ():
                total[start:stop] += to[start:stop]
        for start, stop in split.spans:
            mean = total[start:stop]
            if scale != 1.0:
                mean.mul_(scale)
            if accumulate:
                out[start:stop] += mean
            elif not in_place:
                out[start:stop] = mean

    def _decode_double(
        self, wires: Tensor, out: Bucket, rng: Rng, packing: Packing, scale: float, skip: Tensor, accumulate: bool,
        message: int | None, stride: int | None, weights: Sequence[float] | None, bits: Tensor | None,
    ) -> None:  # fmt: skip
        """Every message by itself in fp32, which is what it holds; their sum in double precision."""
        # One call for all messages: they are read as one long message whose table has every row once for each.
        count, width, wires = len(wires), out.layout.numel, wires.contiguous().view(1, -1)
        single = torch.empty(count * width, dtype=torch.float32, device=wires.device)
        for coded in (False, True):
            if not (packing.coded if coded else packing.exact):
                continue
            table, spans = packing.stacked(
                coded, out.layout, count, wires.numel() // count, seed=rng.seed, message=message, stride=stride
            )  # fmt: skip
            if coded:
                # Scale and weights wait for double precision: a product in fp32 would be rounded once more.
                self.decode_rows(wires, table, skip, single, 1.0, False, rng, packing.find)
                lines = packing.lines(out.layout, message=message, stride=stride)
                # Each message has zero rows of its own.
                for one, said in zip(single.view(count, width), wires.view(count, -1), strict=True):
                    if lines is not None:
                        ops.zero_rows_clear(one, said if bits is None else bits, lines.table)
            else:
                ops.dense_decode(wires, table, skip, single, 1.0, False)
            for start, stop in spans:
                values = single.view(count, width)[:, start:stop]
                # ``spans`` are what these rows have written: elsewhere ``single`` is whatever memory held.
                if weights is not None:
                    total = torch.tensor(weights, dtype=torch.float64, device=wires.device) @ values.double()
                else:
                    total = values[0] if count == 1 else values.sum(0, dtype=torch.float64)
                part = out.flat[start:stop]
                if accumulate:
                    part.add_(total, alpha=scale)
                else:
                    torch.mul(total.double(), scale, out=part)


@lru_cache(maxsize=4096)
def _none(count: int, device: torch.device, stream: int) -> Tensor:
    """Marks for no segment; kernels only read it. One for each stream: in another they may not be written yet."""
    return torch.zeros(count, dtype=torch.uint8, device=device)


def _sum_of(x: Bucket, add: Bucket | None, decay: float, add_scale: float, layout: Layout) -> Bucket:
    """y = decay*x + add_scale*add in double precision."""
    if layout.covers and x.layout == layout and (add is None or add.layout == layout):
        y = x.flat * decay
        return Bucket(y if add is None else y.add_(add.flat, alpha=add_scale), layout)
    y = Bucket(torch.zeros(layout.numel, dtype=torch.float64, device=x.flat.device), layout)
    for s in layout.segments:
        for bucket, scale in ((x, decay), (add, add_scale)):
            at = -1 if bucket is None else bucket.layout.position(s)
            if bucket is not None and at >= 0:
                y.flat[s.start : s.stop].add_(bucket.flat[at : at + s.numel], alpha=scale)
    return y


def _leave(x: Bucket, y: Bucket, payload: Payload) -> None:
    """x <- y - decode(payload) for the segments of x: exact ones leave nothing, and a bad number leaves nothing."""
    error = torch.where(y.flat.isfinite(), y.flat, 0.0)
    payload.decode_add_(Bucket(error, y.layout), -1.0)
    if payload.message is None and y.layout.covers and x.layout == y.layout and not payload.packing.exact:
        x.flat.copy_(error)
        return
    for row in (*payload.packing.exact, *payload.packing.coded):
        at = x.layout.position(row.segment)
        if at >= 0 and (payload.message is None or row.message == payload.message):
            s = row.segment
            left = error[s.start : s.stop] if row in payload.packing.coded else 0.0
            x.flat[at : at + s.numel] = left


class Payload(NamedTuple):
    """A coded bucket: the bytes, and what is needed to decode them later. ``status``: see ``write_header``. ``bits``:
    of its zero rows, where they are not in the message."""

    compressor: Compressor
    packing: Packing
    wire: Tensor
    status: Tensor
    rng: Rng
    message: int | None = None
    bits: Tensor | None = None

    def decode_add_(self, into: Bucket, scale: float = 1.0, *, skip: Tensor | None = None) -> None:
        """into += scale * decode(payload), where ``into`` has the segment and ``skip`` does not rule it out."""
        self.compressor.decode_(
            self.wire.unsqueeze(0), Target(into, scale, True), self.rng, self.packing,
            skip=skip, message=self.message, bits=self.bits,
        )  # fmt: skip

    def zero_(self, into: Bucket, *, skip: Tensor | None = None) -> None:
        """Zeroes in ``into`` the elements that the payload carries, where ``skip`` does not rule the segment out."""
        table = self.packing.table(True, into.layout, seed=self.rng.seed, message=self.message)
        if skip is not None:
            table = table[skip[table[:, 7]] == 0]
        if len(table):
            self.compressor.zero_rows(self.wire, table, into.flat, self.rng, self.packing.find)
        for at, numel, number in self.packing.exact_spans(into.layout, self.message):
            if skip is None or not skip[number]:
                into.flat[at : at + numel] = 0

    def dense(self, layout: Layout) -> Bucket:
        """The decoded payload as a new bucket."""
        bucket = Bucket(torch.zeros(layout.numel, dtype=torch.float32, device=self.wire.device), layout)
        self.decode_add_(bucket)
        return bucket
