"""Memory in fewer bytes: slabs whose segments are a compressor's sections, end to end, with nothing between them.

A slot with ``codec=Quantized(c)`` holds, instead of d fp32 numbers, the sections that stand for them, one per 2**20
elements and one for the rest, each rounded up to four bytes: 1.07 d bytes in all for
``QSGD(bits=8, rounding="nearest", block=64, dense_below=0)``, 2 d for ``Cast(torch.bfloat16, dense_below=0)``. A slab
of zeros stands for zeros, so a slot begins as others do. One kernel call treats a whole slab; ``read`` and ``write``
treat a part of one parameter, so that large ones need no copy in fp32.

What rounding loses is lost: |e - decode(encode(e))|^2 <= (1 - delta)|e|^2 with the codec's delta, each time that the
slot is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..core.compressor import Compressor
from ..core.layout import Bucket, Layout, Segment
from ..core.packing import Packing
from ..core.random import Rng
from ..core.source import Source, Target

PIECE = 1 << 20
"""Elements of a parameter that share a section, so that a slot can be read in parts."""
_RNG = Rng(0, 0, 0)
"""Codecs of memory round to nearest: they draw nothing."""


def decode_(
    slab: Tensor, layout: Layout, codec: Compressor, out: Bucket, scale: float = 1.0, *, accumulate: bool = False
) -> None:
    """out = (out if accumulate) + scale * what the slab stands for, in the segments that ``out`` has.

    Args:
        slab: uint8: the sections of all segments of ``layout``, in its order.
        layout: the segments that are kept in this form.
        out: fp32; its layout may have more segments, which are left alone, or fewer.
    """
    packing = packed(codec, layout)
    _check("decode_", slab, packing.nbytes, layout, codec)
    codec.decode_(slab.unsqueeze(0), Target(out, scale, accumulate), _RNG, packing)


def decode_add_(slab: Tensor, layout: Layout, codec: Compressor, into: Bucket, scale: float = 1.0) -> None:
    """into += scale * what the slab stands for."""
    decode_(slab, layout, codec, into, scale, accumulate=True)


def encode_(
    x: Bucket,
    slab: Tensor,
    codec: Compressor,
    *,
    layout: Layout | None = None,
    decay: float = 1.0,
    add: Bucket | None = None,
    add_scale: float = 1.0,
    status: Tensor | None = None,
) -> Tensor:
    """slab <- encode(decay * x + add_scale * add). Leaves the content of ``x`` unspecified.

    Args:
        x: fp32; holds all segments of ``layout``.
        slab: uint8, written from end to end.
        layout: the segments that are kept in this form; None: all of ``x.layout``.
        add: fp32, read only; holds all segments of ``layout`` too.
        status: uint8 memory for what is returned; None: fresh memory.

    Returns:
        The kernels' ``status``, uint8: whether a non-finite number was met (and left out), then per segment whether
        ``add`` (``x`` where there is none) has an element that is not zero.
    """
    layout = layout or x.layout
    packing = packed(codec, layout)
    _check("encode_", slab, packing.nbytes, layout, codec)
    payload = codec.encode_(Source(x, add, decay, add_scale), _RNG, wire=slab, packing=packing, status=status)
    return payload.status


@dataclass(frozen=True)
class Quantized:
    """The codec of a slot: ``compressor``'s sections."""

    compressor: Compressor

    def nbytes(self, numel: int) -> int:
        return section_bytes(self.compressor, numel)

    def read(self, held: Tensor, numel: int, low: int, high: int) -> Tensor:
        return read(held, self.compressor, numel, low, high)

    def write(self, numbers: Tensor, held: Tensor, low: int = 0, *, decay: float = 1.0) -> None:
        write(numbers, held, self.compressor, low, decay=decay)


def section_bytes(codec: Compressor, numel: int) -> int:
    """Bytes of a parameter of ``numel`` elements in a quantized slot."""
    whole, rest = divmod(numel, PIECE)
    sizes = (codec.section(PIECE) if whole else 0, codec.section(rest) if rest else 0)
    return whole * (-(-sizes[0] // 4) * 4) + -(-sizes[1] // 4) * 4


@lru_cache(maxsize=4096)
def packed(codec: Compressor, layout: Layout) -> Packing:
    """The sections of all segments end to end, without a header, one per piece of ``PIECE`` elements: how a quantized
    slot lies in memory."""
    for s in layout.segments:
        if codec.variable or codec.exact(s):
            raise ValueError(
                f"{codec!r} keeps no memory of {s.name!r}: sections of fixed length are needed, of every parameter. "
                f"Use one such as QSGD(bits=8, rounding='nearest', dense_below=0)."
            )
    pieces = tuple(
        (i, s.piece(low, min(low + PIECE, s.numel)))
        for i, s in enumerate(layout.segments)
        for low in range(0, s.numel, PIECE)
    )
    return Packing(codec, (pieces,), len(layout.segments), bare=True)


def read(section: Tensor, codec: Compressor, numel: int, low: int, high: int) -> Tensor:
    """Elements ``[low, high)`` of a parameter of ``numel`` elements as fp32 numbers."""
    out = torch.empty(high - low, dtype=torch.float32, device=section.device)
    for start, stop in _pieces(numel, low, high):
        piece = torch.empty(stop - start, dtype=torch.float32, device=section.device)
        layout = _alone(stop - start)
        decode_(_bytes(section, codec, start, stop), layout, codec, Bucket(piece, layout))
        first, last = max(low, start), min(high, stop)
        out[first - low : last - low] = piece[first - start : last - start]
    return out


def write(flat: Tensor, section: Tensor, codec: Compressor, low: int = 0, *, decay: float = 1.0) -> None:
    """Makes elements from ``low`` on, a multiple of 2**20, stand for ``decay * flat``, up to the end of a piece. Leaves
    the content of ``flat`` unspecified."""
    for start, stop in _pieces(low + flat.numel(), low, low + flat.numel()):
        part, layout = flat[start - low : stop - low], _alone(stop - start)
        encode_(Bucket(part, layout), _bytes(section, codec, start, stop), codec, decay=decay)


def _pieces(numel: int, low: int, high: int) -> list[tuple[int, int]]:
    """Those of a parameter that overlap with ``[low, high)``."""
    return [(start, min(start + PIECE, numel)) for start in range(low // PIECE * PIECE, high, PIECE)]


def _bytes(section: Tensor, codec: Compressor, start: int, stop: int) -> Tensor:
    first = start // PIECE * section_bytes(codec, PIECE)
    return section[first : first + section_bytes(codec, stop - start)]


def _alone(numel: int) -> Layout:
    return Layout([Segment("", (numel,), 0, numel)])


def _check(call: str, slab: Tensor, due: int, layout: Layout, codec: Compressor) -> None:
    if slab.numel() != due:
        raise ValueError(
            f"quantized.{call}: the slab has {slab.numel()} bytes where {due} are due for {codec!r} over {layout!r}. "
            f"Give the layout of exactly the segments that have the slot."
        )
