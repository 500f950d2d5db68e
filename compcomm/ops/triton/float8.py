"""Eight-bit floats under a scale per block, by integer arithmetic alone. Formulas and layout:
``ops/reference/float8.py``."""

from __future__ import annotations

import triton
import triton.language as tl

from ..reference.float8 import section
from .common import take_f32
from .quantised import decode, encode, negated, scales_of
from .registry import kernel


@triton.jit
def _scales(norm, gain, E5M2: tl.constexpr):
    top = tl.full(norm.shape, 57344.0 if E5M2 else 448.0, tl.float32)
    steps = tl.div_rn(norm, top)
    return scales_of(norm, steps, tl.div_rn(top, norm), top * steps)


@triton.jit
def _code(y, steps, inverse, dither, E5M2: tl.constexpr, STOCHASTIC: tl.constexpr, NORM2: tl.constexpr):
    MANTISSA: tl.constexpr = 2 if E5M2 else 3
    LEAST: tl.constexpr = 127 - 14 if E5M2 else 127 - 6
    SHIFT: tl.constexpr = 23 - MANTISSA
    t = tl.abs(y * inverse)
    power = tl.maximum(t.to(tl.int32, bitcast=True) & 0x7F800000, LEAST << 23)
    big = power + (SHIFT << 23)
    total = t + big.to(tl.float32, bitcast=True)
    code = total.to(tl.int32, bitcast=True) - big + (power >> SHIFT) - (LEAST << MANTISSA)
    value = (total - big.to(tl.float32, bitcast=True)) * steps
    negative = y.to(tl.int32, bitcast=True) < 0
    return tl.where(negative, code | 128, code), tl.where(negative, negated(value), value)


@triton.jit
def _head(message, at, mask, WORDS: tl.constexpr, E5M2: tl.constexpr):
    return take_f32(message, at, mask, WORDS) * (1.0 if E5M2 else 256.0)


@triton.jit
def _value(code, step, E5M2: tl.constexpr):
    """A code, its exponent in five bits, is a float16: the number, or a 256th of it (E4M3)."""
    half = code << 8 if E5M2 else (code & 127) << 7 | (code & 128) << 8
    return half.to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32) * step


@kernel("float8_encode")
def float8_encode(x, add, wire, table, status, decay, add_scale, e5m2, block):
    encode(
        "float8_encode", x, add, wire, table, status, decay, add_scale, None, 8, False, False, block, 0, 0, int(e5m2),
        lambda row: section(row.numel, block), _scales, _code,
    )  # fmt: skip


@kernel("float8_decode")
def float8_decode(wires, table, skip, out, scale, accumulate, e5m2, block):
    decode(
        "float8_decode", wires, table, skip, out, scale, accumulate, 8, block, int(e5m2),
        lambda row: section(row.numel, block), 4, _head, _value,
    )  # fmt: skip
