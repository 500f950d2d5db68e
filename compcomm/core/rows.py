"""The two ways to code a parameter: one at a time in plain torch, or a bucket's rows in one call.

A new compressor writes ``encode`` and ``decode``; the loops here make rows of them. A fast one overrides
``encode_rows`` and ``decode_rows`` (and ``zero_rows``, where it is sparse), whose table is that of ``Packing.table``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from .format import Format
from .former import renamed_attribute
from .layout import Segment
from .random import Rng, key


class Inputs(NamedTuple):
    """What every encode kernel takes: y = decay*x + add_scale*add is coded, and x keeps what was not sent."""

    x: Tensor
    add: Tensor | None
    wire: Tensor
    table: Tensor
    status: Tensor
    decay: float
    add_scale: float


class Received(NamedTuple):
    """What an owner got for its blocks: messages, their table (its rows are those that are coded again), what to skip,
    and what makes a mean of the messages' sum."""

    wires: Tensor
    table: Tensor
    skip: Tensor
    scale: float


class Uniform(NamedTuple):
    """Levels -s..s on a step per block of ``block`` elements: norm / levels, under the max norm or the L2 norm."""

    levels: int
    block: int
    norm2: bool
    stochastic: bool


class Find(Protocol):
    """Finds the segment of a table's row: from the number of its segment and its first element (columns 7 and 4)."""

    def __call__(self, number: int, offset: int) -> Segment: ...


class Rows(Format):
    """A format whose bytes it writes and reads."""

    sparse: ClassVar[bool] = False
    """Only some elements are sent; a payload decodes in time proportional to their number."""

    # What a new compressor writes, the simple way: one parameter at a time.

    def encode(self, y: Tensor, segment: Segment, rng: Rng) -> Tensor:
        """The coded form of a parameter (or an owner's piece of it): a 1-D tensor of any dtype, of at most
        ``section(numel)`` bytes, on the device of ``y``.

        Args:
            y: its elements, finite fp32 numbers, 1-D. ``y.view(segment.shape)`` where ``segment.whole``.
            segment: which parameter: its ``name``, ``shape``, and the ``offset`` of the first element in it.
            rng: random numbers, on the device where they are needed: ``rng.uniform(segment, y.device)``, one for each
                element; ``shared=True`` where ``decode`` draws the same ones.
        """
        old = renamed_attribute(self, "encode_segment", "encode(y, segment, rng)")
        if old is not None:
            return old(y, rng, key(rng.seed, segment.name), segment.offset)
        raise NotImplementedError(f"{type(self).__name__}.encode (or encode_rows) is still to be written.")

    def decode(self, code: Tensor, segment: Segment, rng: Rng) -> Tensor:
        """The fp32 vector of ``segment.numel`` elements that the bytes (uint8 [section(numel)]) stand for, on their
        device. Bytes come from a peer: whatever they are, it ends in numbers or in an error."""
        old = renamed_attribute(self, "decode_segment", "decode(code, segment, rng)")
        if old is not None:
            return old(code, segment.numel, rng, key(rng.seed, segment.name), segment.offset)
        raise NotImplementedError(
            f"{type(self).__name__}.decode is still to be written (or decode_rows, and zero_rows where it is sparse)."
        )

    # What a fast one overrides: a whole bucket in one call (the table is that of ``Packing.table``).

    def encode_rows(self, i: Inputs, gain: Tensor, rng: Rng, hints: Mapping[str, Tensor], find: Find) -> None:
        """Codes all rows of the table; on return ``i.x`` holds what was not sent."""
        for (at, add_at, numel, wire, offset, _, _, index), g in zip(i.table.tolist(), gain.tolist(), strict=True):
            to, segment = i.x[at : at + numel], find(index, offset)
            x = to.float()  # a gradient in half precision is coded in fp32
            grad = x if i.add is None else i.add[add_at : add_at + numel]
            old = x if i.decay == 1.0 else x * i.decay
            y = old if i.add is None else old + grad * i.add_scale
            finite = torch.isfinite(y)
            good = finite.all()
            i.status[0] |= ~good
            i.status[1 + index] |= (grad != 0).any()
            if not (y.is_cpu and good):  # elsewhere, to ask would be to wait
                y = torch.where(finite, y, torch.nan_to_num(old, 0.0, 0.0, 0.0) if i.add is not None else 0.0)
            given = y if g == 1.0 else torch.nan_to_num(y * g)  # a gain may overflow: the largest number then
            code = self.encode(given, segment, rng).clone(memory_format=torch.contiguous_format).view(torch.uint8)
            size = self.section(numel)
            if len(code) > size:
                raise ValueError(
                    f"{self!r}: encode gave {len(code)} bytes for {numel} elements, and section({numel}) says {size}. "
                    f"Both follow from the number of elements alone; make them agree."
                )
            i.wire[wire : wire + len(code)] = code
            i.wire[wire + len(code) : wire + -(-size // 4) * 4] = 0
            torch.sub(y, self.decode(i.wire[wire : wire + size], segment, rng), out=to)

    def decode_rows(
        self, wires: Tensor, table: Tensor, skip: Tensor, out: Tensor, scale: float, accumulate: bool, rng: Rng,
        find: Find,
    ) -> None:  # fmt: skip
        """out = (out if accumulate) + scale * sum over the messages ``wires[W, stride]``, in rank order."""
        for at, _, numel, wire, offset, _, _, index in table.tolist():
            if at < 0:
                continue
            part, segment = out[at : at + numel], find(index, offset)
            total = torch.zeros(numel, dtype=torch.float32, device=part.device)
            if not (skip.is_cpu and skip[index]):
                for w in wires:  # scaled first: the sum of large numbers may be infinite where their mean is not
                    total.add_(self.decode(w[wire : wire + self.section(numel)], segment, rng), alpha=scale)
                total = total if skip.is_cpu else torch.where(skip[index] == 0, total, 0.0)
            part.copy_(part + total if accumulate else total)

    def zero_rows(self, wire: Tensor, table: Tensor, out: Tensor, rng: Rng, find: Find) -> None:
        """Zeroes the elements that a message carries: all of them, and of a sparse one those that are not zero."""
        for at, _, numel, start, offset, _, _, index in table.tolist():
            if at >= 0 and self.sparse:
                sent = self.decode(wire[start : start + self.section(numel)], find(index, offset), rng)
                out[at : at + numel][sent != 0] = 0
            elif at >= 0:
                out[at : at + numel] = 0
