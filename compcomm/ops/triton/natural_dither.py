"""Natural dithering: levels that halve, under a norm per block. Formulas and layout:
``ops/reference/natural_dither.py``."""

from __future__ import annotations

import triton
import triton.language as tl

from ..reference.qsgd import section
from .quantised import decode, encode, negated, scales_of, step_head
from .registry import kernel


@triton.jit
def _scales(norm, gain, LEVELS: tl.constexpr):
    steps = norm * gain
    return scales_of(norm, steps, tl.div_rn(tl.full(norm.shape, 1.0, tl.float32), norm), steps)


@triton.jit
def _size(index, step, LEVELS: tl.constexpr):
    """2^(index - LEVELS) * step."""
    return ((index + (127 - LEVELS)) << 23).to(tl.float32, bitcast=True) * step


@triton.jit
def _code(y, steps, inverse, dither, LEVELS: tl.constexpr, STOCHASTIC: tl.constexpr, NORM2: tl.constexpr):
    p = tl.abs(y * inverse) * 2.0 ** (LEVELS - 1)
    z = tl.maximum(p + 1.0, p + p).to(tl.int32, bitcast=True)
    index = tl.minimum((z - 0x3F800000 + (dither * 128 + 64)) >> 23, LEVELS)
    negative = y.to(tl.int32, bitcast=True) < 0
    size = tl.where(index == 0, 0.0, _size(index, steps, LEVELS))
    value = tl.where(negative & (index != 0), negated(size), size)
    return tl.where(negative, LEVELS - index, LEVELS + index), value


@triton.jit
def _value(code, step, LEVELS: tl.constexpr):
    q = code - LEVELS
    size = _size(tl.where(q < 0, -q, q), step, LEVELS)
    return tl.where(q == 0, 0.0, tl.where(q < 0, negated(size), size))


@kernel("natural_dither_encode")
def natural_dither_encode(
    x, add, wire, table, status, decay, add_scale, gain, bits, norm2, block, step, rank
):  # fmt: skip
    encode(
        "natural_dither_encode", x, add, wire, table, status, decay, add_scale, gain, bits, norm2, True, block, step,
        rank, 2 ** (bits - 1) - 1, lambda row: section(row.numel, bits, block), _scales, _code,
    )  # fmt: skip


@kernel("natural_dither_decode")
def natural_dither_decode(wires, table, skip, out, scale, accumulate, bits, block):
    decode(
        "natural_dither_decode", wires, table, skip, out, scale, accumulate, bits, block, 2 ** (bits - 1) - 1,
        lambda row: section(row.numel, bits, block), 4, step_head, _value,
    )  # fmt: skip
