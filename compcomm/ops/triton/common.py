"""Device functions that the kernels share: rows, the input rule, status bits, Philox dithers, bytes.

What they compute is defined in ``ops/reference/rows.py`` and ``philox.py``; here it is said for a tile of elements.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def row_of(table, tiles):
    """This program's row: (row, tile, x, add, numel, wire, offset, key, k, index), int64 scalars."""
    p = tl.program_id(0).to(tl.int64)
    row = tl.load(tiles + 2 * p).to(tl.int64)
    tile = tl.load(tiles + 2 * p + 1).to(tl.int64)
    line = table + 8 * row
    return (
        row, tile, tl.load(line), tl.load(line + 1), tl.load(line + 2), tl.load(line + 3), tl.load(line + 4),
        tl.load(line + 5), tl.load(line + 6), tl.load(line + 7),
    )  # fmt: skip


@triton.jit
def finite(y):
    return tl.abs(y) < float("inf")


@triton.jit
def bfloat16_bits(y):
    """fp32 rounded half to even, as uint16: exact everywhere (the interpreter's own cast cuts off)."""
    bits = y.to(tl.uint32, bitcast=True)
    even = bits + 0x7FFF + ((bits >> 16) & 1)
    return tl.where(y == y, even >> 16, 0x7FC0).to(tl.uint16)


@triton.jit
def store(pointer, y, mask):
    """Writes fp32 values in the tensor's own type: fp32, or rounded to bfloat16 or float16."""
    if pointer.dtype.element_ty == tl.bfloat16:
        tl.store(pointer, bfloat16_bits(y).to(tl.bfloat16, bitcast=True), mask=mask)
    else:
        tl.store(pointer, y.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def load_y(x, add, x_at, add_at, i, mask, decay, add_scale, HAS_X: tl.constexpr, HAS_ADD: tl.constexpr):
    """y = decay*x + add_scale*add at ``i`` (int32), from elements ``x_at`` and ``add_at`` (int64; negative: absent) on.

    Returns y without non-finite numbers (0 outside the mask), where it was not finite, and where the gradient is not 0.
    """
    if HAS_ADD:
        has_add = add_at >= 0
        grad = tl.load(add + tl.maximum(add_at, 0) + i, mask=mask & has_add, other=0.0).to(tl.float32)
        if HAS_X:
            has_x = x_at >= 0
            old = tl.load(x + tl.maximum(x_at, 0) + i, mask=mask & has_x, other=0.0).to(tl.float32)
            own = old * decay
            scaled = grad * add_scale
            both = own + scaled
            y = tl.where(has_add, tl.where(has_x, both, scaled), own)
            rest = tl.where(has_add & has_x & finite(own), own, 0.0)
            alive = tl.where(has_add, grad, old) != 0
        else:
            y = grad * add_scale
            rest = tl.zeros_like(y)
            alive = grad != 0
    else:
        old = tl.load(x + x_at + i, mask=mask, other=0.0).to(tl.float32)
        y = old * decay
        rest = tl.zeros_like(y)
        alive = old != 0
    bad = (finite(y) == 0) & mask
    return tl.where(mask, tl.where(bad, rest, y), 0.0), bad, alive & mask


@triton.jit
def flag(status, entry, condition):
    """status[entry] |= 1 where any element of ``condition`` (a tile of any shape) holds."""
    met = tl.max(tl.ravel(condition.to(tl.int32)), axis=0)
    old = tl.load(status + entry)
    tl.store(status + entry, old | 1, mask=met != 0)


@triton.jit
def fold_lanes(lanes):
    """[N, 16] -> [N]: halved 8, 4, 2, 1 apart, the end of the fixed tree."""
    N: tl.constexpr = lanes.shape[0]
    lanes = tl.sum(tl.reshape(lanes, [N, 2, 8]), axis=1)
    lanes = tl.sum(tl.reshape(lanes, [N, 2, 4]), axis=1)
    lanes = tl.sum(tl.reshape(lanes, [N, 2, 2]), axis=1)
    return tl.sum(lanes, axis=1)


@triton.jit
def philox(c0, step, rank, stream, key):
    """The four words of Philox4x32-10 (uint32) for the counters (c0, step, rank, stream): c0 is uint32, the others
    scalars of any integer type, taken modulo 2^32."""
    zero = tl.zeros_like(c0)
    c1 = zero + tl.cast(step, tl.uint32)
    c2 = zero + tl.cast(rank, tl.uint32)
    c3 = zero + tl.cast(stream, tl.uint32)
    k0 = zero + (key & 0xFFFFFFFF).to(tl.uint32)
    k1 = zero + ((key >> 32) & 0xFFFFFFFF).to(tl.uint32)
    for _ in tl.static_range(10):
        a, b = c0, c2
        c0 = tl.umulhi(b, zero + 0xCD9E8D57) ^ c1 ^ k0
        c1 = b * (zero + 0xCD9E8D57)
        c2 = tl.umulhi(a, zero + 0xD2511F53) ^ c3 ^ k1
        c3 = a * (zero + 0xD2511F53)
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def dither_each(j, step, rank, stream, key):
    """The 16-bit dithers (int32) of elements ``j`` (int64, any shape) of a parameter: a Philox call for each."""
    c0 = (((j >> 7) * 16 + (j & 15)) & 0xFFFFFFFF).to(tl.uint32)
    v = ((j >> 4) & 7).to(tl.int32)
    w0, w1, w2, w3 = philox(c0, step, rank, stream, key)
    low = tl.where(v < 2, w0, w1)
    high = tl.where(v < 6, w2, w3)
    word = tl.where(v < 4, low, high)
    return ((word >> ((v & 1) * 16).to(tl.uint32)) & 0xFFFF).to(tl.int32)


@triton.jit
def dither_run(first, step, rank, stream, key, N: tl.constexpr):
    """The same for the N elements from ``first`` on, both multiples of 128: one Philox call for eight of them."""
    S: tl.constexpr = N // 128
    c0 = first // 8 + tl.arange(0, 16 * S)
    w0, w1, w2, w3 = philox((c0 & 0xFFFFFFFF).to(tl.uint32), step, rank, stream, key)
    w = tl.join(tl.join(w0, w2), tl.join(w1, w3))  # [16 S, 2, 2]: words 0, 1, 2, 3
    halves = tl.reshape(tl.join(w & 0xFFFF, w >> 16), [S, 16, 8])
    return tl.reshape(tl.permute(halves, [0, 2, 1]), [N]).to(tl.int32)


@triton.jit
def uniform(dither):
    """U = (u + 1/2) / 65536."""
    return dither.to(tl.float32) * 1.52587890625e-05 + 7.62939453125e-06


@triton.jit
def put32(wire, at, value, mask, WORDS: tl.constexpr):
    """Writes 32-bit values (float or int) at bytes ``at``."""
    bits = value.to(tl.uint32, bitcast=True)
    if WORDS:
        tl.store((wire + at).to(tl.pointer_type(tl.uint32)), bits, mask=mask)
    else:
        for b in tl.static_range(4):
            tl.store(wire + at + b, ((bits >> (8 * b)) & 0xFF).to(tl.uint8), mask=mask)


@triton.jit
def take32(wire, at, mask, WORDS: tl.constexpr):
    """Reads uint32 at bytes ``at`` (0 outside the mask)."""
    if WORDS:
        return tl.load((wire + at).to(tl.pointer_type(tl.uint32)), mask=mask, other=0)
    else:
        bits = tl.load(wire + at, mask=mask, other=0).to(tl.uint32)
        for b in tl.static_range(1, 4):
            bits |= tl.load(wire + at + b, mask=mask, other=0).to(tl.uint32) << (8 * b)
        return bits


@triton.jit
def take_f32(wire, at, mask, WORDS: tl.constexpr):
    return take32(wire, at, mask, WORDS).to(tl.float32, bitcast=True)


@triton.jit
def pack8(codes, BITS: tl.constexpr):
    """[N, 8] codes (int32, below 2^BITS) -> [N, 8] bytes, of which the first BITS count."""
    shift = tl.arange(0, 8)[None, :]
    word = tl.sum(codes.to(tl.int64) << (shift * BITS).to(tl.int64), axis=1)
    return ((word[:, None] >> (shift * 8).to(tl.int64)) & 0xFF).to(tl.uint8)


@triton.jit
def put_codes(wire, at, codes, nbytes, BITS: tl.constexpr):
    """Writes the N codes (int32 [N], N a multiple of 32) of ``BITS`` bits from byte ``at`` on, at most ``nbytes``."""
    N: tl.constexpr = codes.shape[0]
    if BITS == 8:
        b = tl.arange(0, N)
        tl.store(wire + at + b, codes.to(tl.uint8), mask=b < nbytes)
    elif BITS == 1 or BITS == 2 or BITS == 4:
        PER: tl.constexpr = 8 // BITS
        shift = tl.arange(0, PER)[None, :] * BITS
        byte = tl.sum(tl.reshape(codes, [N // PER, PER]) << shift, axis=1)
        b = tl.arange(0, N // PER)
        tl.store(wire + at + b, byte.to(tl.uint8), mask=b < nbytes)
    else:
        m = tl.arange(0, 8)[None, :]
        b = tl.arange(0, N // 8)[:, None] * BITS + m
        bytes_ = pack8(tl.reshape(codes, [N // 8, 8]), BITS)
        tl.store(wire + at + b, bytes_, mask=(m < BITS) & (b < nbytes))


@triton.jit
def take_code(wire, at, i, mask, BITS: tl.constexpr):
    """Code ``i`` (int32, any shape) of the stream of ``BITS`` bits that begins at byte ``at``."""
    if BITS == 8:
        return tl.load(wire + at + i, mask=mask, other=0).to(tl.int32)
    elif BITS == 1 or BITS == 2 or BITS == 4:
        PER: tl.constexpr = 8 // BITS
        byte = tl.load(wire + at + i // PER, mask=mask, other=0).to(tl.int32)
        return (byte >> ((i % PER) * BITS)) & (2**BITS - 1)
    else:
        first = (i // 8) * BITS + ((i % 8) * BITS) // 8
        shift = ((i % 8) * BITS) % 8
        low = tl.load(wire + at + first, mask=mask, other=0).to(tl.int32)
        spill = shift + BITS > 8
        high = tl.load(wire + at + first + 1, mask=mask & spill, other=0).to(tl.int32)
        return ((low | (high << 8)) >> shift) & (2**BITS - 1)


@triton.jit
def finish(out, at, i, mask, total, scale, ACCUMULATE: tl.constexpr):
    """out = total * scale, or out + total * scale, at element ``at`` (int64) + i."""
    result = total * scale
    if ACCUMULATE:
        result = tl.load(out + at + i, mask=mask, other=0.0).to(tl.float32) + result
    store(out + at + i, result, mask)


@triton.jit
def lane_sums(
    x, add, x_at, add_at, first, numel, decay, add_scale, HAS_ADD: tl.constexpr, NB: tl.constexpr, BLOCK: tl.constexpr
):
    """Per block of ``BLOCK`` elements, NB blocks from element ``first`` of the row on: (sum |y|, sum y^2), fp32 [NB].

    By the fixed tree: element 16 r + lane is added in the order of r, then the lanes are folded.
    """
    sizes = tl.zeros([NB, 16], tl.float32)
    squares = tl.zeros([NB, 16], tl.float32)
    i = tl.arange(0, NB)[:, None] * BLOCK + tl.arange(0, 16)[None, :]
    for r in range(BLOCK // 16):
        at = i + r * 16
        y, _, _ = load_y(
            x, add, x_at + first, tl.where(add_at < 0, -1, add_at + first), at, at < numel - first, decay, add_scale,
            True, HAS_ADD,
        )  # fmt: skip
        sizes += tl.abs(y)
        squares += y * y
    tl.debug_barrier()  # what was read here may be written next, by warps that hold copies of it
    return fold_lanes(sizes), fold_lanes(squares)


@triton.jit
def nearest_even(t):
    """The nearest integer, halves to even, of what lies in -2^22..2^22."""
    return (t + 12582912.0) - 12582912.0


@triton.jit
def put_columns(wire, at, codes, c0, room, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """Writes the codes (int32 [NB, C]) of the columns from ``c0`` on of NB blocks of ``BLOCK`` elements.

    Their stream of ``BITS`` bits begins at byte ``at``; nothing is written from byte ``room`` of it on, nor the columns
    after a block's end.
    """
    NB: tl.constexpr = codes.shape[0]
    C: tl.constexpr = codes.shape[1]
    from_ = c0 * BITS // 8
    if NB == 1 or C == BLOCK:
        put_codes(wire, at + from_, tl.reshape(codes, [NB * C]), room - from_, BITS)
    elif BITS == 1 or BITS == 2 or BITS == 4 or BITS == 8:
        PER: tl.constexpr = 8 // BITS
        shift = (tl.arange(0, PER) * BITS)[None, None, :]
        byte = tl.sum(tl.reshape(codes, [NB, C // PER, PER]) << shift, axis=2)
        m = c0 // PER + tl.arange(0, C // PER)[None, :]
        b = tl.arange(0, NB)[:, None] * (BLOCK // PER) + m
        tl.store(wire + at + b, byte.to(tl.uint8), mask=(m < BLOCK // PER) & (b < room))
    else:
        G: tl.constexpr = C // 8
        group = tl.arange(0, NB * G)[:, None]
        column = c0 + group % G * 8
        m = tl.arange(0, 8)[None, :]
        b = (group // G * BLOCK + column) // 8 * BITS + m
        bytes_ = pack8(tl.reshape(codes, [NB * G, 8]), BITS)
        tl.store(wire + at + b, bytes_, mask=(m < BITS) & (column < BLOCK) & (b < room))
