"""Streams of codes of 1 to 8 bits: written as words from a tile of codes, and read several codes at a time.

A decoder holds a tensor for each place in a word: ``PER`` tensors of ``G`` elements. So a thread takes all codes out of
the words that it loads, and nothing moves between threads before the sum over the messages is there.
"""

from __future__ import annotations

import triton
import triton.language as tl


def per_load(bits: int) -> int:
    """Codes that a decoder takes at once: of a word, or where those straddle words, of ``bits`` bytes."""
    return {2: 16, 4: 8, 8: 4}.get(bits, 8)


@triton.jit
def stream_bytes(left, BITS: tl.constexpr, NB: tl.constexpr, BLOCK: tl.constexpr):
    """Bytes that a program writes of a stream of codes where ``left`` elements (int64) are left of the row: its own, and
    after the last one zeros up to the end of a word."""
    return tl.where(left > NB * BLOCK, NB * BLOCK // 8 * BITS, (left * BITS + 31) // 32 * 4)


@triton.jit
def put_stream(wire, at, codes, nbytes, BITS: tl.constexpr, ROW: tl.constexpr, WHOLE: tl.constexpr):
    """Writes codes (int32 [NB, WIDE], below 2^BITS) from byte ``at`` on, at most ``nbytes``: ROW of every row.

    WHOLE: ``at`` and ``nbytes`` are multiples of four, in a buffer of words.
    """
    NB: tl.constexpr = codes.shape[0]
    WIDE: tl.constexpr = codes.shape[1]
    nbytes = tl.minimum(nbytes, 1 << 30).to(tl.int32)
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
    """The PER codes from code ``g * PER`` on as the low bits of a word (uint32 or uint64); the stream begins at byte
    ``at``, and ``nbytes`` of it may be read."""
    BYTES: tl.constexpr = BITS * PER // 8
    if BYTES == 4 and WORDS:
        return tl.load((wire + at).to(tl.pointer_type(tl.uint32)) + g, mask=g * 4 < nbytes, other=0)
    else:
        words = tl.zeros_like(g).to(tl.uint32 if BYTES <= 4 else tl.uint64)
        for part in tl.static_range(BYTES):
            b = g * BYTES + part
            words |= tl.load(wire + at + b, mask=b < nbytes, other=0).to(words.dtype) << (8 * part)
        return words


@triton.jit
def nothing(PER: tl.constexpr, G: tl.constexpr):
    """PER sums [G] of no messages: -0, to which the first one is added without changing a bit."""
    zero = tl.full([G], -(2**31), tl.int32).to(tl.float32, bitcast=True)
    sums = ()
    for _ in tl.static_range(PER):
        sums = sums + (zero,)
    return sums


@triton.jit
def in_order(p, PER: tl.constexpr):
    """PER tensors [G] -> [G * PER]: one element of each in turn."""
    G: tl.constexpr = p[0].shape[0]
    if PER == 4:
        w = tl.join(tl.join(p[0], p[2]), tl.join(p[1], p[3]))
    elif PER == 8:
        even = tl.join(tl.join(p[0], p[4]), tl.join(p[2], p[6]))
        odd = tl.join(tl.join(p[1], p[5]), tl.join(p[3], p[7]))
        w = tl.join(even, odd)
    else:
        even = tl.join(tl.join(p[0], p[8]), tl.join(p[4], p[12]))
        odd = tl.join(tl.join(p[2], p[10]), tl.join(p[6], p[14]))
        both = tl.join(even, odd)
        even = tl.join(tl.join(p[1], p[9]), tl.join(p[5], p[13]))
        odd = tl.join(tl.join(p[3], p[11]), tl.join(p[7], p[15]))
        w = tl.join(both, tl.join(even, odd))
    return tl.reshape(w, [G * PER])
