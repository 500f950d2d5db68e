"""What the quantisers with a scale per block share: the shape of a program, and streams of codes as words.

A program holds ``NB`` blocks in registers: it reads x and add once and writes x once. Where a block is too long for
that, it has one block alone, and passes over it twice, ``WIDE`` columns at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from . import work
from .common import load_y

TILE = 4096


class Shape(NamedTuple):
    """``nb`` blocks of ``block`` elements to an encoder's program; ``chunks`` times ``wide`` columns of each."""

    nb: int
    wide: int
    chunks: int
    block: int
    warps: int

    @property
    def tile(self) -> int:
        """Elements to a program."""
        return self.nb * self.block

    @property
    def runs(self) -> bool:
        """Whether what a program treats at once is one run of elements, a multiple of 128."""
        return self.chunks > 1 or (self.wide == self.block and self.tile % 128 == 0)

    @property
    def whole(self) -> bool:
        """Whether the codes of a program end at a word."""
        return self.tile % 32 == 0


def shape(block: int) -> Shape:
    """Of any positive multiple of 16."""
    wide = triton.next_power_of_2(block)
    if wide <= TILE // 2:
        return Shape(TILE // wide, wide, 1, block, 4)
    if wide <= 2 * TILE and block == wide:
        return Shape(1, wide, 1, block, wide // 1024)
    return Shape(1, TILE, -(-block // TILE), block, 4)


def step_of(table: Tensor, columns: tuple[int, ...]) -> int:
    """4 where all these columns hold multiples of four (or -1: absent), else 1: then loads and stores are vectors."""

    def make() -> int:
        found = table[:, columns]
        return 1 if bool(((found % 4 != 0) & (found != -1)).any()) else 4

    return work.kept(table, ("step", columns), make)


def per_load(bits: int) -> int:
    """Codes that a decoder takes at once: of a word, or where those straddle words, of ``bits`` bytes."""
    return {2: 16, 4: 8, 8: 4}.get(bits, 8)


@triton.jit
def rounded(t):
    """t to the nearest integer, halves to even, plus 1.5 * 2^23: its bits count up with the integer. |t| < 2^22."""
    return t + 12582912.0


@triton.jit
def level_of(r, ZERO: tl.constexpr):
    """The integer in ``r``, plus ZERO, as int32."""
    return r.to(tl.int32, bitcast=True) - (0x4B400000 - ZERO)


@triton.jit
def number(code, ZERO: tl.constexpr):
    """code - ZERO as fp32, for codes in 0..2^22: their bits become the mantissa of 2^23 + code."""
    return (code | 0x4B000000).to(tl.float32, bitcast=True) - (8388608.0 + ZERO)


@triton.jit
def take_y(x, add, x_at, add_at, i, mask, decay, add_scale, HAS_ADD: tl.constexpr, STEP: tl.constexpr):
    """``load_y`` where x is there, from addresses that are multiples of ``STEP`` elements."""
    x_at = tl.multiple_of(x_at, STEP)
    add_at = tl.multiple_of(tl.where(add_at < 0, -16, add_at), STEP)
    return load_y(x, add, x_at, add_at, i, mask, decay, add_scale, True, HAS_ADD)


@triton.jit
def flags(status, entry, bad, alive):
    """status[0] |= 1 where anything is bad, status[1 + entry] |= 1 where anything is alive, of at most 2^14 elements."""
    met = tl.sum(tl.ravel(bad.to(tl.int32) * 65536 + alive.to(tl.int32)), axis=0)
    if met >= 65536:
        tl.store(status, tl.load(status) | 1)
    old = tl.load(status + 1 + entry)
    tl.store(status + 1 + entry, old | 1, mask=((met & 65535) != 0) & ((old & 1) == 0))


@triton.jit
def stream_bytes(left, BITS: tl.constexpr, NB: tl.constexpr, BLOCK: tl.constexpr):
    """Bytes (int32) that a program writes of a stream of codes, where ``left`` elements (int64) are left of the row:
    its own, and after the last one zeros up to the end of a word."""
    some = (tl.minimum(left, NB * BLOCK).to(tl.int32) * BITS + 31) // 32 * 4
    return tl.where(left > NB * BLOCK, NB * BLOCK // 8 * BITS, some)


@triton.jit
def put_stream(wire, at, codes, nbytes, BITS: tl.constexpr, ROW: tl.constexpr, WHOLE: tl.constexpr):
    """Writes codes (int32 [NB, WIDE], below 2^BITS) from byte ``at`` on, at most ``nbytes``: ROW of every row.

    WHOLE: ``at`` and ``nbytes`` are multiples of four, in a buffer of words.
    """
    NB: tl.constexpr = codes.shape[0]
    WIDE: tl.constexpr = codes.shape[1]
    EVEN: tl.constexpr = BITS == 1 or BITS == 2 or BITS == 4 or BITS == 8
    if EVEN and WHOLE and (WIDE == ROW or ROW * BITS % 32 == 0) and WIDE * BITS >= 32:
        PER: tl.constexpr = 32 // BITS
        shift = (tl.arange(0, PER) * BITS)[None, None, :].to(tl.uint32)
        words = tl.sum(tl.reshape(codes.to(tl.uint32), [NB, WIDE // PER, PER]) << shift, axis=2)
        m = tl.arange(0, WIDE // PER)[None, :]
        b = (tl.arange(0, NB)[:, None] * (ROW // PER) + m) * 4
        mask = (m < ROW // PER) & (b < nbytes)
        tl.store((wire + at).to(tl.pointer_type(tl.uint32)) + b // 4, words, mask=mask)
    elif EVEN:
        PER: tl.constexpr = 8 // BITS
        shift = (tl.arange(0, PER) * BITS)[None, None, :]
        bytes_ = tl.sum(tl.reshape(codes, [NB, WIDE // PER, PER]) << shift, axis=2)
        m = tl.arange(0, WIDE // PER)[None, :]
        b = tl.arange(0, NB)[:, None] * (ROW // PER) + m
        tl.store(wire + at + b, bytes_.to(tl.uint8), mask=(m < ROW // PER) & (b < nbytes))
    else:
        shift = (tl.arange(0, 8) * BITS)[None, None, :].to(tl.int64)
        words = tl.sum(tl.reshape(codes.to(tl.int64), [NB, WIDE // 8, 8]) << shift, axis=2)
        g = tl.arange(0, WIDE // 8)[None, :]
        b = (tl.arange(0, NB)[:, None] * (ROW // 8) + g) * BITS
        for part in tl.static_range(BITS):
            mask = (g < ROW // 8) & (b + part < nbytes)
            tl.store(wire + at + b + part, ((words >> (8 * part)) & 255).to(tl.uint8), mask=mask)


@triton.jit
def take_stream(wire, at, g, nbytes, BITS: tl.constexpr, PER: tl.constexpr, WORDS: tl.constexpr):
    """Codes (int32 [G, PER]) ``g * PER`` and so on of the stream at byte ``at``, of which ``nbytes`` may be read."""
    shift = (tl.arange(0, PER) * BITS)[None, :]
    if BITS * PER == 32 and WORDS:
        words = tl.load((wire + at).to(tl.pointer_type(tl.uint32)) + g, mask=g * 4 < nbytes, other=0)
        codes = words[:, None] >> shift.to(tl.uint32)
    elif BITS <= 4:
        words = tl.zeros_like(g).to(tl.uint32)
        for part in tl.static_range(BITS * PER // 8):
            b = g * (BITS * PER // 8) + part
            words |= tl.load(wire + at + b, mask=b < nbytes, other=0).to(tl.uint32) << (8 * part)
        codes = words[:, None] >> shift.to(tl.uint32)
    else:
        words = tl.zeros_like(g).to(tl.uint64)
        for part in tl.static_range(BITS * PER // 8):
            b = g * (BITS * PER // 8) + part
            words |= tl.load(wire + at + b, mask=b < nbytes, other=0).to(tl.uint64) << (8 * part)
        codes = words[:, None] >> shift.to(tl.uint64)
    return (codes & (2**BITS - 1)).to(tl.int32)
