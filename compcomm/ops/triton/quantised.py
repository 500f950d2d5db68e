"""Quantisers with a scale per block: one encoder and one decoder, given what a format does to a block and an element.

An encoder's program holds ``NB`` blocks in registers: it reads x and add once and writes x once. Where a block is too
long for that, it has one block alone, and passes over it twice, ``WIDE`` columns at a time. The L2 norm is summed in a
fixed order, for which the blocks are read once more, out of the cache unless they are long.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ..reference.rows import Row
from . import work
from .common import dither_each, dither_run, finish, finite, fold_lanes, load_y, put32, row_of, store, take_f32
from .launch import launch
from .streams import natural_order, nothing, per_load, put_stream, take_stream

TILE = 2048
TINY = tl.constexpr(2.0**-100)
INFINITE = tl.constexpr(0x7F800000)


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
        return self.tile % 128 == 0 and (self.chunks > 1 or self.wide == self.block)

    @property
    def whole(self) -> bool:
        """Whether the codes of a program end at a word."""
        return self.tile % 32 == 0


def shape(block: int) -> Shape:
    """Of any positive multiple of 16."""
    wide = triton.next_power_of_2(block)
    if wide <= TILE:
        return Shape(max(1 if block % 32 == 0 else 2, TILE // wide), wide, 1, block, 4)
    if wide <= 4 * TILE and block == wide:
        return Shape(1, wide, 1, block, wide // 512)
    return Shape(1, TILE, -(-block // TILE), block, 4)


def quads(table: Tensor, columns: tuple[int, ...]) -> int:
    """4 where all these columns hold multiples of four (or -1: absent), else 1: then loads and stores are vectors."""

    def make() -> int:
        found = table[:, columns]
        return 1 if bool(((found % 4 != 0) & (found != -1)).any()) else 4

    return work.kept(table, ("step", columns), make)


@triton.jit
def places(left, NB: tl.constexpr, WIDE: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr):
    """Where a tile's elements lie after its first one (int32 [WIDE / C, NB, C]), and which of them there are.

    C are the elements that a warp takes at once. The compiler gives its warps the last two dimensions first: so each
    has blocks of its own, and a block's norm does not leave its warp.
    """
    r = tl.arange(0, WIDE // C)[:, None, None] * C
    column = r + tl.arange(0, C)[None, None, :]
    i = tl.arange(0, NB)[None, :, None] * BLOCK + column
    mask = i < left
    if NB > 1 and WIDE != BLOCK:
        mask = mask & (column < BLOCK)
    return i, mask


@triton.jit
def raw_y(x, add, x_from, add_from, i, mask, decay, add_scale, HAS_ADD: tl.constexpr):
    """y = decay*x + add_scale*add as it comes, and the gradient: cheaper than ``load_y``, right where y is finite."""
    old = tl.load(x + x_from + i, mask=mask, other=0.0).to(tl.float32)
    own = old * decay
    if HAS_ADD:
        has_add = add_from >= 0
        grad = tl.load(add + tl.maximum(add_from, 0) + i, mask=mask & has_add, other=0.0).to(tl.float32)
        scaled = grad * add_scale
        return tl.where(has_add, own + scaled, own), tl.where(has_add, grad, old)
    else:
        return own, old


@triton.jit
def size_bits(y):
    """|y| as an integer that counts up with it: infinity is 0x7F800000, and NaN is above."""
    return y.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def over_block(f):
    """The greatest of each block of a tile, [R, NB, C] -> [NB]."""
    return tl.max(tl.max(f, axis=0), axis=1)


@triton.jit
def square_sums(
    x, add, x_from, add_from, left, decay, add_scale, HAS_ADD: tl.constexpr, NB: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """``lane_sums`` of y^2 alone, no further than there are elements, several loads under way."""
    squares = tl.zeros([NB, 16], tl.float32)
    i = tl.arange(0, NB)[:, None] * BLOCK + tl.arange(0, 16)[None, :]
    for r in tl.range(((tl.minimum(left, BLOCK) + 15) // 16).to(tl.int32), loop_unroll_factor=4):
        at = i + r * 16
        y, _bad, _alive = load_y(x, add, x_from, add_from, at, at < left, decay, add_scale, True, HAS_ADD)
        squares += y * y
    tl.debug_barrier()  # what was read here may be written next, by warps that hold copies of it
    return fold_lanes(squares)


@triton.jit
def per_block(f):
    """[NB] -> [1, NB, 1]"""
    return f[None, :, None]


@triton.jit
def dither_tile(offset, first, i, step, rank, key, RUNS: tl.constexpr):
    """The dithers (int32) of a tile's elements; RUNS: they are one run that begins at a multiple of 128."""
    if RUNS:
        R: tl.constexpr = i.shape[0]
        NB: tl.constexpr = i.shape[1]
        C: tl.constexpr = i.shape[2]
        run = dither_run(offset + first, step, rank, 0, key, NB * R * C)
        return tl.permute(tl.reshape(run, [NB, R, C]), [1, 0, 2])
    else:
        return dither_each(offset + first + i, step, rank, 0, key)


@triton.jit
def negated(f):
    """-f, of zeros too (Triton's minus is 0 - f)."""
    return f * -1.0


@triton.jit
def raise_flag(status, entry, condition):
    """status[entry] |= 1 where the scalar ``condition`` holds and it is not set yet."""
    old = tl.load(status + entry)
    tl.store(status + entry, old | 1, mask=condition & ((old & 1) == 0))


@triton.jit
def block_of(first, g, PER: tl.constexpr, BLOCK: tl.constexpr):
    """The block of element ``first + g * PER`` of a row, counted from that of element ``first``."""
    inside = first % BLOCK
    if BLOCK < 1 << 30:
        inside = inside.to(tl.int32)
    return (inside + g * PER) // BLOCK


@triton.jit
def scales_of(norm, steps, inverse, largest):
    """What can be used of a block's step and inverse step, else zeros, and whether that is for an overflow, of the norm
    or of the ``largest`` value."""
    small = norm < TINY
    good = finite(norm) & finite(largest)
    used = good & (norm >= TINY)
    return tl.where(used, steps, 0.0), tl.where(used, inverse, 0.0), (good | small) == 0


@triton.jit
def clean_tile(
    x, add, x_from, add_from, left, c, decay, add_scale,
    HAS_ADD: tl.constexpr, STEP: tl.constexpr, NB: tl.constexpr, WIDE: tl.constexpr, C: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """``load_y`` of the c-th WIDE columns; also their places after element ``x_from``, returned last."""
    left = tl.multiple_of(tl.minimum(left - c * WIDE, 1 << 24).to(tl.int32), STEP)
    i, mask = places(left, NB, WIDE, C, BLOCK)
    x_from = tl.multiple_of(x_from + c * WIDE, STEP)
    add_from = tl.multiple_of(tl.where(add_from < 0, -16, add_from + c * WIDE), STEP)
    y, bad, alive = load_y(x, add, x_from, add_from, i, mask, decay, add_scale, True, HAS_ADD)
    return y, bad, alive, left, i, mask, x_from


@triton.jit(do_not_specialize=["step", "rank"])
def _encode(
    x, add, wire, table, tiles, status, gain, decay, add_scale, step, rank,
    HAS_ADD: tl.constexpr, WORDS: tl.constexpr, WHOLE: tl.constexpr, STEP: tl.constexpr, RUNS: tl.constexpr,
    NB: tl.constexpr, WIDE: tl.constexpr, C: tl.constexpr, CHUNKS: tl.constexpr, BLOCK: tl.constexpr,
    BITS: tl.constexpr, NORM2: tl.constexpr, STOCHASTIC: tl.constexpr, SCALES: tl.constexpr, CODE: tl.constexpr,
    FORM: tl.constexpr,
):  # fmt: skip
    row, tile, x_at, add_at, numel, wire_at, offset, key, _, entry = row_of(table, tiles)
    first = tile * (NB * BLOCK)
    all_left = tl.minimum(numel - first, NB * BLOCK)
    chunks = 1 if CHUNKS == 1 else (all_left + WIDE - 1) // WIDE
    x_from = tl.multiple_of(x_at + first, STEP)
    # An absent ``add`` is any negative place; -16 keeps what ``multiple_of`` promises the compiler.
    add_from = tl.multiple_of(tl.where(add_at < 0, -16, add_at + first), STEP)
    if CHUNKS == 1:  # y stays in registers; a longer block is read again for its codes
        left = tl.multiple_of(all_left.to(tl.int32), STEP)
        i, mask = places(left, NB, WIDE, C, BLOCK)
        y, seen = raw_y(x, add, x_from, add_from, i, mask, decay, add_scale, HAS_ADD)
        alive = tl.max(tl.ravel(size_bits(seen)), axis=0) != 0
        peak = over_block(size_bits(y))
        bad = tl.max(peak, axis=0) >= INFINITE  # as integers: a maximum of floats would lose a NaN
        if bad:  # rare, so only then is every element looked at and cleaned
            y, _bad, _alive = load_y(x, add, x_from, add_from, i, mask, decay, add_scale, True, HAS_ADD)
            peak = over_block(size_bits(y))
    else:
        peak = tl.zeros([NB], tl.int32)
        bads = tl.zeros([NB], tl.int32)
        alives = tl.zeros([NB], tl.int32)
        for c in range(chunks):
            more, _bad, _alive, _left, _i, _mask, _from = clean_tile(
                x, add, x_from, add_from, all_left, c, decay, add_scale, HAS_ADD, STEP, NB, WIDE, C, BLOCK
            )
            peak = tl.maximum(peak, over_block(size_bits(more)))
            bads = tl.maximum(bads, over_block(_bad.to(tl.int32)))
            alives = tl.maximum(alives, over_block(_alive.to(tl.int32)))
        bad, alive = tl.max(bads, axis=0) != 0, tl.max(alives, axis=0) != 0
    if NORM2:  # in the order of the other kernels' sums: the step must have the same bits
        norm = tl.sqrt_rn(square_sums(x, add, x_from, add_from, all_left, decay, add_scale, HAS_ADD, NB, BLOCK))
    else:
        norm = peak.to(tl.float32, bitcast=True)
    factor = 1.0 if gain is None else tl.load(gain + row)
    steps, inverse, overflow = SCALES(norm, factor, FORM)
    b = tl.arange(0, NB)
    put32(wire, wire_at + (tile * NB + b) * 4, steps, b * BLOCK < all_left, WORDS)
    raise_flag(status, 0, bad | (tl.max(overflow.to(tl.int32), axis=0) != 0))
    raise_flag(status, 1 + entry, alive)
    codes_at = wire_at + (numel + BLOCK - 1) // BLOCK * 4
    for c in range(chunks):
        if CHUNKS > 1:
            y, _bad, _alive, left, i, mask, x_from_c = clean_tile(
                x, add, x_from, add_from, all_left, c, decay, add_scale, HAS_ADD, STEP, NB, WIDE, C, BLOCK
            )
        else:
            x_from_c = x_from
        dither = dither_tile(offset, first + c * WIDE, i, step, rank, key, RUNS) if STOCHASTIC else 0
        codes, value = CODE(y, per_block(steps), per_block(inverse), dither, FORM, STOCHASTIC, NORM2)
        # Over what was just read: no other program, and no later chunk, reads these places.
        store(x + x_from_c + i, y - value, mask)
        put_stream(wire, codes_at, numel, first + c * WIDE, codes, left, BITS, BLOCK, WHOLE)


@triton.jit
def step_head(message, at, mask, WORDS: tl.constexpr, FORM: tl.constexpr):
    """A block's step alone."""
    return take_f32(message, at, mask, WORDS)


@triton.jit
def _plus(
    total, message, heads_at, codes_at, g, left,
    BITS: tl.constexpr, PER: tl.constexpr, WORDS: tl.constexpr, HEAD: tl.constexpr, VALUE: tl.constexpr,
    FORM: tl.constexpr,
):  # fmt: skip
    head = HEAD(message, heads_at, g * PER < left, WORDS, FORM)
    words = take_stream(message, codes_at, g, (left * BITS + 31) // 32 * 4, BITS, PER, WORDS)
    sums = ()
    for s in tl.static_range(PER):
        code = ((words >> (s * BITS)) & (2**BITS - 1)).to(tl.int32)
        sums = sums + (total[s] + VALUE(code, head, FORM),)
    return sums


@triton.jit
def _decode(
    wires, messages, stride, table, tiles, skip, out, scale,
    ACCUMULATE: tl.constexpr, WORDS: tl.constexpr, STEP: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
    BITS: tl.constexpr, PER: tl.constexpr, SIZE: tl.constexpr, HEAD: tl.constexpr, VALUE: tl.constexpr,
    FORM: tl.constexpr,
):  # fmt: skip
    _, tile, x_at, _, numel, wire_at, _, _, _, entry = row_of(table, tiles)
    first = tile * TILE
    x_from = tl.multiple_of(x_at + first, STEP)
    left = tl.multiple_of(tl.minimum(numel - first, TILE).to(tl.int32), STEP)
    i = tl.arange(0, TILE)
    if tl.load(skip + entry) == 0:
        g = tl.arange(0, TILE // PER)
        heads_at = wire_at + first // BLOCK * SIZE + block_of(first, g, PER, BLOCK) * SIZE
        codes_at = wire_at + (numel + BLOCK - 1) // BLOCK * SIZE + first // 8 * BITS
        total = nothing(PER, TILE // PER)
        message = wires
        for _m in tl.range(messages, loop_unroll_factor=4):
            total = _plus(total, message, heads_at, codes_at, g, left, BITS, PER, WORDS, HEAD, VALUE, FORM)
            message += stride
        finish(out, x_from, i, i < left, natural_order(total, PER), scale, ACCUMULATE)
    elif ACCUMULATE == 0:
        store(out + x_from + i, tl.zeros([TILE], tl.float32), i < left)


def encode(
    op: str, x, add, wire: Tensor, table: Tensor, status, decay, add_scale, gain, bits: int, norm2: bool,
    stochastic: bool, block: int, step: int, rank: int, form: int, section: Callable[[Row], int], scales: Any,
    code: Any,
) -> None:  # fmt: skip
    """Launches the encoder of a format with one step per block.

    ``scales(norm, gain, form)`` gives (steps, inverse, overflow) of blocks; ``code(y, steps, inverse, dither, form,
    stochastic, norm2)`` the codes (int32) and values of elements.
    """
    work.check_encode(op, x, add, wire, table, status, section, bits, block)
    s = shape(block)
    w = work.tiles(table, s.tile, wire.device)
    words, quad = work.words(wire), quads(table, (0, 1, 2))
    launch(
        _encode, w.programs, x, add, wire, w.table, w.tiles, status,
        None if gain is None else work.on(gain, wire.device), decay, add_scale, step, rank,
        HAS_ADD=add is not None, WORDS=words, WHOLE=words and s.whole, STEP=quad,
        RUNS=stochastic and s.runs and work.aligned(table, 128), NB=s.nb, WIDE=s.wide, C=min(32 * quad, s.wide),
        CHUNKS=s.chunks, BLOCK=block, BITS=bits, NORM2=norm2, STOCHASTIC=stochastic, SCALES=scales, CODE=code,
        FORM=form, num_warps=s.warps,
    )  # fmt: skip


def decode(
    op: str, wires: Tensor, table: Tensor, skip, out, scale, accumulate, bits: int, block: int, form: int,
    section: Callable[[Row], int], size: int, head: Any, value: Any,
) -> None:  # fmt: skip
    """Launches the decoder of a format with ``size`` bytes per block.

    ``head(message, at, mask, words, form)`` reads them from bytes ``at`` on; ``value(code, head, form)`` decodes.
    """
    work.check_decode(op, wires, table, skip, out, section, bits, block)
    w = work.tiles(table, TILE, out.device, decoding=True)
    launch(
        _decode, w.programs, wires, wires.shape[0], wires.stride(0), w.table, w.tiles, skip, out, scale,
        ACCUMULATE=accumulate, WORDS=work.words(wires), STEP=quads(table, (0, 2)), BLOCK=block, TILE=TILE, BITS=bits,
        PER=per_load(bits), SIZE=size, HEAD=head, VALUE=value, FORM=form,
    )  # fmt: skip
