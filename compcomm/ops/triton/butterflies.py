"""Butterflies in registers, signs, and numbers as bytes: device functions of the Hadamard transform.

A tile in registers: five bits of a number's place are its lane, the highest ones its warp, those between its register.
Butterflies go over lanes by shuffles, then over registers; one exchange through shared memory makes the warp's bits
registers. So a tile of 2^15 costs five shuffles and one word of shared memory written and read per number.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .common import philox, put32, store, take32


@triton.jit
def swapped(q, A: tl.constexpr, B: tl.constexpr):
    """The place of q in an [A, B] matrix, where q counts by columns."""
    return (q % A) * B + q // A


@triton.jit
def places(NEAR: tl.constexpr, FAR: tl.constexpr):
    """Where the numbers of a tile lie in it: lanes hold 32 in a row, and a warp NEAR times 32."""
    i = tl.arange(0, 32 * NEAR * FAR)
    return swapped(i // 32, FAR, NEAR) * 32 + i % 32


@triton.jit
def _by_lanes(t, H: tl.constexpr):
    """Butterflies over distance H < 32, within a warp: the other number is the pair's sum less the own one, in bits."""
    N: tl.constexpr = t.shape[0]
    pairs = tl.reshape(t, [N // (2 * H), 2, H])
    bits = pairs.to(tl.int32, bitcast=True)
    other = (tl.sum(bits, axis=1, keep_dims=True) - bits).to(tl.float32, bitcast=True)
    second = tl.arange(0, 2)[None, :, None] == 1
    return tl.reshape(other + tl.where(second, -pairs, pairs), [N])


@triton.jit
def halves(t, H: tl.constexpr):
    """[N] -> what is first and what is second in pairs of distance H: [N / 2H, H] each."""
    N: tl.constexpr = t.shape[0]
    return tl.split(tl.permute(tl.reshape(t, [N // (2 * H), 2, H]), [0, 2, 1]))


@triton.jit
def whole(a, b):
    """Undoes ``halves``."""
    both = tl.permute(tl.join(a, b), [0, 2, 1])
    return tl.reshape(both, [both.shape[0] * both.shape[1] * both.shape[2]])


@triton.jit
def _by_registers(t, H: tl.constexpr):
    a, b = halves(t, H)
    return whole(a + b, a - b)


@triton.jit
def inside_blocks(t, first, end, H: tl.constexpr, UNIT: tl.constexpr):
    """Butterflies over distance H * UNIT of the rows ``first`` and on, of UNIT numbers each, of which the cut counts
    ``end``: two rows H apart are in one block of it where they agree with ``end`` in no higher bits than they must."""
    N: tl.constexpr = t.shape[0]
    a, b = halves(t, H * UNIT)
    pair = first // (2 * H) + tl.arange(0, N // (2 * H * UNIT))
    on = (pair != end // (2 * H))[:, None]
    return whole(tl.where(on, a + b, a), tl.where(on, a - b, b))


@triton.jit
def lane_stages(t, STAGES: tl.constexpr):
    """The butterflies of the lowest five bits, or STAGES if that is less."""
    for s in tl.static_range(STAGES):
        if s < 5:
            t = _by_lanes(t, 2**s)
    return t


@triton.jit
def further_stages(t, STAGES: tl.constexpr, NEAR: tl.constexpr, FAR: tl.constexpr):
    """The others of the lowest STAGES bits of numbers that lie in the order of ``places``. Where those are more bits
    than are near, the numbers end up in their own order."""
    for s in tl.static_range(STAGES):
        if s >= 5 and 2**s < 32 * NEAR:
            t = _by_registers(t, 2**s * FAR)
    if 2**STAGES > 32 * NEAR:
        i = tl.arange(0, 32 * NEAR * FAR)
        t = tl.gather(t, swapped(i // 32, NEAR, FAR) * 32 + i % 32, 0)
        for s in tl.static_range(STAGES):
            if 2**s >= 32 * NEAR:
                t = _by_registers(t, 2**s)
    return t


@triton.jit
def sign_words(begin, step, key, ALIGNED: tl.constexpr):
    """The signs of the 32 elements from each of ``begin`` (int64) on, as bits of uint32. ALIGNED: multiples of 32."""
    word = _sign_word(begin >> 5, step, key)
    if ALIGNED == 0:
        shift = (begin & 31).to(tl.uint32)
        word = (word >> shift) | ((_sign_word((begin >> 5) + 1, step, key) << 1) << (31 - shift))
    return word


@triton.jit
def _sign_word(number, step, key):
    w0, w1, w2, w3 = philox(((number >> 2) & 0xFFFFFFFF).to(tl.uint32), step, 0, 2, key)
    even = tl.where((number & 2) == 0, w0, w2)
    odd = tl.where((number & 2) == 0, w1, w3)
    return tl.where((number & 1) == 0, even, odd)


@triton.jit
def signed(t, i, words):
    """t with the signs of the elements ``i``: bit i % 32 of word i // 32. A gather, so that a word is computed once."""
    word = tl.gather(words, i // 32, 0)
    minus = ((word >> (i % 32).to(tl.uint32)) << 31).to(tl.int32, bitcast=True)
    return (t.to(tl.int32, bitcast=True) ^ minus).to(tl.float32, bitcast=True)


@triton.jit
def log2(n):
    """The highest bit of 1 <= n < 2^24 (int32)."""
    return (n.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127


@triton.jit
def root(log):
    """fl(size^-1/2) of the size 2^log."""
    power = ((127 - (log >> 1)) << 23).to(tl.float32, bitcast=True)
    return tl.where((log & 1) == 0, 1.0, 0.7071067811865476) * power


@triton.jit
def size_bits(y):
    """Bits of the magnitude: they order like it."""
    return y.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def is_small(size):
    """Whether a magnitude is below 2^64."""
    return size < 0x5F800000


@triton.jit
def put_numbers(wire, at, i, t, mask, WORDS: tl.constexpr):
    """Numbers ``i`` of those that begin at byte ``at``."""
    if WORDS:
        tl.store((wire + at).to(tl.pointer_type(tl.uint32)) + i, t.to(tl.uint32, bitcast=True), mask=mask)
    else:
        put32(wire, at + i * 4, t, mask, False)


@triton.jit
def take_numbers(wire, at, i, mask, WORDS: tl.constexpr):
    if WORDS:
        bits = tl.load((wire + at).to(tl.pointer_type(tl.uint32)) + i, mask=mask, other=0)
    else:
        bits = take32(wire, at + i * 4, mask, False)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def write(out, at, i, t, mask, scale, ACCUMULATE: tl.constexpr):
    result = t * scale
    if ACCUMULATE:
        result = tl.load(out + at + i, mask=mask, other=0.0).to(tl.float32) + result
    store(out + at + i, result, mask)


@triton.jit
def flag_all(status, entry, met):
    """status[0] |= 1 where ``met`` (int32) has anything in its high half, status[1 + entry] |= 1 where in its low
    one."""
    if (met >> 16) != 0:
        tl.store(status, tl.load(status) | 1)
    old = tl.load(status + 1 + entry)
    tl.store(status + 1 + entry, old | 1, mask=((met & 65535) != 0) & ((old & 1) == 0))
