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
def put_stream(
    wire, begin, numel, first, codes, left, BITS: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr
):  # fmt: skip
    """Writes the codes (int32 [R, NB, C], below 2^BITS) of NB blocks, or of R * C columns of one that is longer, of
    which there are ``left`` (int32), as codes ``first`` (int64) and so on of the ``numel`` of a stream that begins at
    byte ``begin``; after the last one zeros, up to the end of a word.

    WHOLE: streams and tiles begin at words, and the wire can be written as words.
    """
    R: tl.constexpr = codes.shape[0]
    NB: tl.constexpr = codes.shape[1]
    C: tl.constexpr = codes.shape[2]
    at = begin + first // 8 * BITS
    ROW: tl.constexpr = BLOCK if BLOCK < R * C or NB > 1 else R * C
    EVEN: tl.constexpr = BITS == 1 or BITS == 2 or BITS == 4 or BITS == 8
    AS_WORDS: tl.constexpr = EVEN and WHOLE and C * BITS >= 32 and ROW * BITS % 32 == 0
    PER: tl.constexpr = 32 // BITS if AS_WORDS else 8  # codes of a word, or of BITS bytes
    WIDTH: tl.constexpr = tl.uint64 if BITS > 4 and PER == 8 else tl.uint32
    shift = (tl.arange(0, PER) * BITS)[None, None, None, :].to(WIDTH)
    words = tl.sum(tl.reshape(codes.to(WIDTH), [R, NB, C // PER, PER]) << shift, axis=3)
    r = tl.arange(0, R)[:, None, None] * (C // PER) + tl.arange(0, C // PER)[None, None, :]
    w = tl.arange(0, NB)[None, :, None] * (ROW // PER) + r
    there = tl.minimum(tl.maximum(left - w * PER, 0), PER)
    one = tl.full(there.shape, 1, WIDTH)
    words = tl.where(there == PER, words, words & ((one << (there * BITS).to(WIDTH)) - one))
    if AS_WORDS:
        mask = (r < ROW // PER) & (there > 0)
        tl.store((wire + at).to(tl.pointer_type(tl.uint32)) + w, words, mask=mask)
    else:
        rest = (numel * BITS + 31) // 32 * 4 - first // 8 * BITS
        end = tl.where(numel - first <= left, tl.minimum(rest, 1 << 30), left // 8 * BITS).to(tl.int32)
        for part in tl.static_range(BITS):
            mask = (r < ROW // PER) & (w * BITS + part < end)
            tl.store(wire + at + w * BITS + part, ((words >> (8 * part)) & 255).to(tl.uint8), mask=mask)


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
def natural_order(p, PER: tl.constexpr):
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
