"""QSGD: uniform levels times one step per block. Formulas and layout: ``ops/reference/qsgd.py``."""

from __future__ import annotations

import triton
import triton.language as tl

from ..reference.qsgd import section
from .common import uniform
from .quantised import decode, encode, scales_of, step_head
from .registry import kernel

MAGIC = tl.constexpr(12582912.0)
"""1.5 * 2^23: adding it rounds to the nearest integer, halves to even, and leaves that in the low bits."""


@triton.jit
def _scales(norm, gain, LEVELS: tl.constexpr):
    top = tl.full(norm.shape, LEVELS, tl.float32)
    steps = tl.div_rn(norm, top) * gain
    return scales_of(norm, steps, tl.div_rn(top, norm), top * steps)


@triton.jit
def _code(y, steps, inverse, dither, LEVELS: tl.constexpr, STOCHASTIC: tl.constexpr, NORM2: tl.constexpr):
    t = y * inverse
    if STOCHASTIC:
        t = tl.floor(t + uniform(dither))
    rounded = t + MAGIC
    if STOCHASTIC or NORM2:  # else no |t| rounds to more than LEVELS
        rounded = tl.minimum(tl.maximum(rounded, MAGIC - LEVELS), MAGIC + LEVELS)
    return rounded.to(tl.int32, bitcast=True) - (0x4B400000 - LEVELS), (rounded - MAGIC) * steps


@triton.jit
def _value(code, step, LEVELS: tl.constexpr):
    """(code - LEVELS) * step: a code's bits become the low ones of 2^23 + code."""
    return ((code | 0x4B000000).to(tl.float32, bitcast=True) - (8388608.0 + LEVELS)) * step


@kernel("qsgd_encode")
def qsgd_encode(
    x, add, wire, table, status, decay, add_scale, gain, bits, levels, norm2, stochastic, block, step, rank
):  # fmt: skip
    encode(
        "qsgd_encode", x, add, wire, table, status, decay, add_scale, gain, bits, norm2, stochastic, block, step, rank,
        levels, lambda row: section(row.numel, bits, block), _scales, _code,
    )  # fmt: skip


@kernel("qsgd_decode")
def qsgd_decode(wires, table, skip, out, scale, accumulate, bits, levels, block):
    decode(
        "qsgd_decode", wires, table, skip, out, scale, accumulate, bits, block, levels,
        lambda row: section(row.numel, bits, block), 4, step_head, _value,
    )  # fmt: skip
