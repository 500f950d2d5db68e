"""The randomised Hadamard transform. Formula, cut of a row and signs: ``ops/reference/hadamard.py``.

A row is cut into parts of one size each, and what is left after its last multiple of 4096 elements:

    block <= 4096            whole tiles of 4096, then the ends
    block <= 2^15            the parts of each size from ``block`` down to 4096, a block in registers, then the ends
    larger                   tiles of 4096, then columns of up to 256 such tiles through memory, then the ends

so an op is two launches, up to five, or three, and all numbers pass through memory once (larger blocks: twice).

A block in registers: five of its bits are the lane, the highest ones the warp, those between registers. Butterflies go
over lanes by shuffles, then over registers; one exchange through shared memory makes the warp's bits registers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from ...scratch import scratch
from ..reference.hadamard import section
from . import work
from .common import load_y, philox, put32, row_of, store, take32
from .launch import launch
from .registry import kernel
from .work import Work

TILE = 4096
LARGEST = 1 << 15
"""Elements of the largest block that one program holds."""
COLUMNS = 32


@triton.jit
def _swapped(q, A: tl.constexpr, B: tl.constexpr):
    """The place of q in an [A, B] matrix, where q counts by columns."""
    return (q % A) * B + q // A


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
def _halves(t, H: tl.constexpr):
    """[N] -> what is first and what is second in pairs of distance H: [N / 2H, H] each."""
    N: tl.constexpr = t.shape[0]
    return tl.split(tl.permute(tl.reshape(t, [N // (2 * H), 2, H]), [0, 2, 1]))


@triton.jit
def _whole(a, b):
    """Undoes ``_halves``."""
    both = tl.permute(tl.join(a, b), [0, 2, 1])
    return tl.reshape(both, [both.shape[0] * both.shape[1] * both.shape[2]])


@triton.jit
def _by_registers(t, H: tl.constexpr):
    a, b = _halves(t, H)
    return _whole(a + b, a - b)


@triton.jit
def _where_a_block_holds_both(t, first, end, H: tl.constexpr, UNIT: tl.constexpr):
    """Butterflies over distance H * UNIT of the rows ``first`` and on, of UNIT numbers each, of which the cut counts
    ``end``: two rows H apart are in one block of it where they agree with ``end`` in no higher bits than they must."""
    N: tl.constexpr = t.shape[0]
    a, b = _halves(t, H * UNIT)
    pair = first // (2 * H) + tl.arange(0, N // (2 * H * UNIT))
    on = (pair != end // (2 * H))[:, None]
    return _whole(tl.where(on, a + b, a), tl.where(on, a - b, b))


@triton.jit
def _transform(t, STAGES: tl.constexpr, NEAR: tl.constexpr, FAR: tl.constexpr):
    """The butterflies of the lowest STAGES bits of numbers that lie in the order of ``_places``. With more bits than
    are near they end up in their own order."""
    for s in tl.static_range(STAGES):
        if 2**s < 32:
            t = _by_lanes(t, 2**s)
        elif 2**s < 32 * NEAR:
            t = _by_registers(t, 2**s * FAR)
    if 2**STAGES > 32 * NEAR:
        i = tl.arange(0, 32 * NEAR * FAR)
        t = tl.gather(t, _swapped(i // 32, NEAR, FAR) * 32 + i % 32, 0)
        for s in tl.static_range(STAGES):
            if 2**s >= 32 * NEAR:
                t = _by_registers(t, 2**s)
    return t


@triton.jit
def _places(NEAR: tl.constexpr, FAR: tl.constexpr):
    """Where the numbers of a tile lie in it: lanes hold 32 in a row, and a warp NEAR times 32."""
    i = tl.arange(0, 32 * NEAR * FAR)
    return _swapped(i // 32, FAR, NEAR) * 32 + i % 32


@triton.jit
def _sign_words(begin, step, key, ALIGNED: tl.constexpr):
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
def _signed(t, words):
    """t with the signs: bit c of word g is that of element 32 g + c."""
    N: tl.constexpr = t.shape[0]
    c = tl.arange(0, 32)[None, :].to(tl.uint32)
    minus = ((words[:, None] >> c) << 31).to(tl.int32, bitcast=True)
    bits = tl.reshape(t, [N // 32, 32]).to(tl.int32, bitcast=True) ^ minus
    return tl.reshape(bits.to(tl.float32, bitcast=True), [N])


@triton.jit
def _log2(n):
    """The highest bit of 1 <= n < 2^24 (int32)."""
    return (n.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127


@triton.jit
def _root(log):
    """fl(size^-1/2) of the size 2^log."""
    power = ((127 - (log >> 1)) << 23).to(tl.float32, bitcast=True)
    return tl.where((log & 1) == 0, 1.0, 0.7071067811865476) * power


@triton.jit
def _log_of_block(tile, numel, BLOCK: tl.constexpr, STAGES: tl.constexpr, PASSES: tl.constexpr):
    """log2 of the size of the blocks in a tile, or (PASSES: 2) of the one that holds the tile."""
    if PASSES == 1:
        return tl.full([], STAGES, tl.int32)
    else:
        return _log2(tl.minimum(tile ^ (numel >> STAGES), BLOCK >> STAGES).to(tl.int32)) + STAGES


@triton.jit
def _flags(status, entry, bad, alive):
    """status[0] |= 1 where anything is bad, status[1 + entry] |= 1 where anything is alive; up to 2^15 elements."""
    met = tl.sum(bad.to(tl.int32) * 65536 + alive.to(tl.int32), axis=0)
    if (met >> 16) != 0:
        tl.store(status, tl.load(status) | 1)
    old = tl.load(status + 1 + entry)
    tl.store(status + 1 + entry, old | 1, mask=((met & 65535) != 0) & ((old & 1) == 0))


@triton.jit
def _put(wire, at, i, t, mask, WORDS: tl.constexpr):
    """Numbers ``i`` of those that begin at byte ``at``."""
    if WORDS:
        tl.store((wire + at).to(tl.pointer_type(tl.uint32)) + i, t.to(tl.uint32, bitcast=True), mask=mask)
    else:
        put32(wire, at + i * 4, t, mask, False)


@triton.jit
def _take(wire, at, i, mask, WORDS: tl.constexpr):
    if WORDS:
        bits = tl.load((wire + at).to(tl.pointer_type(tl.uint32)) + i, mask=mask, other=0)
    else:
        bits = take32(wire, at + i * 4, mask, False)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _finish(out, at, i, t, mask, scale, ACCUMULATE: tl.constexpr):
    result = t * scale
    if ACCUMULATE:
        result = tl.load(out + at + i, mask=mask, other=0.0).to(tl.float32) + result
    store(out + at + i, result, mask)


@triton.jit
def _size(y):
    """Bits of the magnitude: they order like it."""
    return y.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def _small(size):
    """Whether a magnitude is below 2^64."""
    return size < 0x5F800000


@triton.jit
def _fits(y, PART: tl.constexpr, NEAR: tl.constexpr, FAR: tl.constexpr):
    """Where an element's block of PART has no number of 2^64 or more; in the order of ``_places``."""
    N: tl.constexpr = y.shape[0]
    if PART == N:
        most = tl.broadcast_to(tl.max(_size(y), axis=0, keep_dims=True), [N])
    else:
        C: tl.constexpr = PART if PART < 32 else 32
        R: tl.constexpr = 1 if PART < 32 else (PART // 32 if PART < 32 * NEAR else NEAR)
        W: tl.constexpr = 1 if PART < 32 * NEAR else PART // (32 * NEAR)
        SHAPE: tl.constexpr = [NEAR // R, R, FAR // W, W, 32 // C, C]
        most = tl.max(tl.reshape(_size(y), SHAPE), axis=5, keep_dims=True)
        most = tl.max(tl.max(most, axis=3, keep_dims=True), axis=1, keep_dims=True)
        most = tl.reshape(tl.broadcast_to(most, SHAPE), [N])
    return _small(most)


@triton.jit(do_not_specialize=["step"])
def _forward(
    x, add, z, table, tiles, status, large, decay, add_scale, step,
    HAS_ADD: tl.constexpr, WORDS: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
    STAGES: tl.constexpr, NEAR: tl.constexpr, FAR: tl.constexpr, PASSES: tl.constexpr,
):  # fmt: skip
    """A tile of whole blocks of 2^STAGES, or (PASSES: 2) of a larger block, which ``_columns`` goes on with."""
    N: tl.constexpr = 32 * NEAR * FAR
    _, tile, x_at, add_at, numel, wire_at, offset, key, _, entry = row_of(table, tiles)
    first = tile * N
    i = _places(NEAR, FAR)
    all_ = tl.full([N], 1, tl.int1)
    y, bad, alive = load_y(
        x, add, x_at + first, tl.where(add_at < 0, -1, add_at + first), i, all_, decay, add_scale, True, HAS_ADD
    )
    store(x + x_at + first + i, y, all_)
    fits = _fits(y, 2**STAGES, NEAR, FAR)
    _flags(status, entry, bad | (fits == 0), alive)
    if PASSES == 2:
        tl.store(large + tl.program_id(0), tl.max((fits == 0).to(tl.int32), axis=0))
    log = _log_of_block(tile, numel, BLOCK, STAGES, PASSES)
    g = _swapped(tl.arange(0, NEAR * FAR), FAR, NEAR)
    words = _sign_words(offset + first + g * 32, step, key, ALIGNED)
    t = tl.where(fits, _signed(y * _root(log), words), 0.0)
    t = _transform(t, STAGES, NEAR, FAR)
    if 2**STAGES > 32 * NEAR:
        i = tl.arange(0, N)
    _put(z, wire_at + first * 4, i, t, all_, WORDS)


@triton.jit(do_not_specialize=["step"])
def _inverse(
    z, table, tiles, skip, out, partial, scale, step,
    ACCUMULATE: tl.constexpr, WORDS: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
    STAGES: tl.constexpr, NEAR: tl.constexpr, FAR: tl.constexpr, PASSES: tl.constexpr,
):  # fmt: skip
    """The same backwards; with PASSES: 2 into ``partial``, tile by tile."""
    N: tl.constexpr = 32 * NEAR * FAR
    _, tile, x_at, _, numel, wire_at, offset, key, _, entry = row_of(table, tiles)
    first = tile * N
    i = _places(NEAR, FAR)
    all_ = tl.full([N], 1, tl.int1)
    if tl.load(skip + entry) == 0:
        log = _log_of_block(tile, numel, BLOCK, STAGES, PASSES)
        t = _take(z, wire_at + first * 4, i, all_, WORDS) * _root(log)
        t = _transform(t, STAGES, NEAR, FAR)
        g = _swapped(tl.arange(0, NEAR * FAR), FAR, NEAR)
        if 2**STAGES > 32 * NEAR:
            g = tl.arange(0, NEAR * FAR)
            i = tl.arange(0, N)
        if PASSES == 1:
            t = _signed(t, _sign_words(offset + first + g * 32, step, key, ALIGNED))
            _finish(out, x_at + first, i, t, all_, scale, ACCUMULATE)
        else:
            tl.store(partial + tl.program_id(0).to(tl.int64) * N + i, t)
    elif (ACCUMULATE == 0) & (PASSES == 1):
        store(out + x_at + first + i, tl.zeros([N], tl.float32), all_)


@triton.jit
def _tall(t, first, end, BLOCK: tl.constexpr, ROWS: tl.constexpr, UNIT: tl.constexpr):
    """Butterflies over ROWS rows of UNIT numbers, from row ``first`` of ``end`` on; BLOCK: rows of a block."""
    for s in tl.static_range(20):
        if 2**s < ROWS and 2**s < BLOCK:
            t = _where_a_block_holds_both(t, first, end, 2**s, UNIT)
    return t


@triton.jit
def _spoilt(large, base, first, end, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    """Which of the rows lie in a block with a number that is too large: [ROWS], int32."""
    r = tl.arange(0, ROWS)
    found = tl.load(large + base + first + r, mask=r < end - first, other=0)
    for s in tl.static_range(20):
        if 2**s < ROWS and 2**s < BLOCK:
            a, b = _halves(found, 2**s)
            on = (first // 2 ** (s + 1) + tl.arange(0, ROWS // 2 ** (s + 1)) != end // 2 ** (s + 1))[:, None]
            found = _whole(tl.where(on, a | b, a), tl.where(on, a | b, b))
    return found


@triton.jit
def _columns_forward(
    z, table, tiles, bases, large,
    WORDS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The bits of a block beyond a tile's: COLUMNS columns of ROWS tiles."""
    row, place, _, _, numel, wire_at, _, _, _, _ = row_of(table, tiles)
    PARTS: tl.constexpr = TILE // COLUMNS
    first = place // PARTS * ROWS
    end = numel // TILE
    i = tl.arange(0, ROWS * COLUMNS)
    r = i // COLUMNS
    mask = r < end - first
    at = wire_at + (first * TILE + place % PARTS * COLUMNS) * 4
    i = r * TILE + i % COLUMNS
    t = _take(z, at, i, mask, WORDS)
    spoilt = _spoilt(large, tl.load(bases + row), first, end, BLOCK // TILE, ROWS)
    t = tl.where(tl.reshape(tl.broadcast_to(spoilt[:, None], [ROWS, COLUMNS]), [ROWS * COLUMNS]) != 0, 0.0, t)
    t = _tall(t, first, end, BLOCK // TILE, ROWS, COLUMNS)
    _put(z, at, i, t, mask, WORDS)


@triton.jit(do_not_specialize=["step"])
def _columns_inverse(
    partial, table, tiles, bases, skip, out, scale, step,
    ACCUMULATE: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row, place, x_at, _, numel, _, offset, key, _, entry = row_of(table, tiles)
    PARTS: tl.constexpr = TILE // COLUMNS
    first = place // PARTS * ROWS
    end = numel // TILE
    i = tl.arange(0, ROWS * COLUMNS)
    r = i // COLUMNS
    mask = r < end - first
    column = place % PARTS * COLUMNS
    i = r * TILE + i % COLUMNS
    at = x_at + first * TILE + column
    if tl.load(skip + entry) == 0:
        t = tl.load(partial + (tl.load(bases + row) + first) * TILE + column + i, mask=mask, other=0.0)
        t = _tall(t, first, end, BLOCK // TILE, ROWS, COLUMNS)
        begin = offset + first * TILE + column + tl.arange(0, ROWS).to(tl.int64) * TILE
        t = _signed(t, _sign_words(begin, step, key, ALIGNED))
        _finish(out, at, i, t, mask, scale, ACCUMULATE)
    elif ACCUMULATE == 0:
        store(out + at + i, tl.zeros([ROWS * COLUMNS], tl.float32), mask)


@triton.jit
def _end_logs(i, end, BLOCK: tl.constexpr):
    """log2 of the size of the block of element i of the last ``end`` of a row."""
    return _log2(tl.minimum(tl.maximum(i ^ end, 1), BLOCK))


@triton.jit
def _end_fits(y, i, end, BLOCK: tl.constexpr, TILE: tl.constexpr):
    """Where an element's block has no number of 2^64 or more."""
    most = _size(y)
    if tl.max(most, axis=0) >= 0x5F800000:
        size = most
        logs = _end_logs(i, end, BLOCK)
        for s in tl.static_range(12):
            if 2**s < BLOCK:
                own = logs == s
                most = tl.where(own, tl.max(tl.where(own, size, 0), axis=0), most)
        if BLOCK < TILE:
            wide = tl.max(tl.reshape(size, [TILE // BLOCK, BLOCK]), axis=1, keep_dims=True)
            wide = tl.reshape(tl.broadcast_to(wide, [TILE // BLOCK, BLOCK]), [TILE])
            most = tl.where(i // BLOCK < end // BLOCK, wide, most)
    return _small(most)


@triton.jit
def _end_transform(t, end, BLOCK: tl.constexpr, TILE: tl.constexpr):
    for s in tl.static_range(12):
        if 2**s < BLOCK:
            t = _where_a_block_holds_both(t, 0, end, 2**s, 1)
    return t


@triton.jit(do_not_specialize=["step"])
def _forward_ends(
    x, add, z, table, tiles, status, decay, add_scale, step,
    HAS_ADD: tl.constexpr, WORDS: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """What a row has after its last whole tile: blocks of descending sizes."""
    _, tile, x_at, add_at, numel, wire_at, offset, key, _, entry = row_of(table, tiles)
    first = tile * TILE
    end = (numel - first).to(tl.int32)
    i = tl.arange(0, TILE)
    mask = i < end
    y, bad, alive = load_y(
        x, add, x_at + first, tl.where(add_at < 0, -1, add_at + first), i, mask, decay, add_scale, True, HAS_ADD
    )
    store(x + x_at + first + i, y, mask)
    fits = _end_fits(y, i, end, BLOCK, TILE)
    _flags(status, entry, bad | (fits == 0), alive)
    words = _sign_words(offset + first + tl.arange(0, TILE // 32) * 32, step, key, ALIGNED)
    t = tl.where(fits, _signed(y * _root(_end_logs(i, end, BLOCK)), words), 0.0)
    _put(z, wire_at + first * 4, i, _end_transform(t, end, BLOCK, TILE), mask, WORDS)


@triton.jit(do_not_specialize=["step"])
def _inverse_ends(
    z, table, tiles, skip, out, scale, step,
    ACCUMULATE: tl.constexpr, WORDS: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    _, tile, x_at, _, numel, wire_at, offset, key, _, entry = row_of(table, tiles)
    first = tile * TILE
    end = (numel - first).to(tl.int32)
    i = tl.arange(0, TILE)
    mask = i < end
    if tl.load(skip + entry) == 0:
        t = _take(z, wire_at + first * 4, i, mask, WORDS) * _root(_end_logs(i, end, BLOCK))
        t = _end_transform(t, end, BLOCK, TILE)
        t = _signed(t, _sign_words(offset + first + tl.arange(0, TILE // 32) * 32, step, key, ALIGNED))
        _finish(out, x_at + first, i, t, mask, scale, ACCUMULATE)
    elif ACCUMULATE == 0:
        store(out + x_at + first + i, tl.zeros([TILE], tl.float32), mask)


class Part(NamedTuple):
    """Tiles of 2^``log`` elements, butterflies of the lowest ``stages`` bits, and the warps that hold a tile."""

    work: Work
    log: int
    stages: int

    @property
    def far(self) -> int:
        """Warps: 1024 elements each."""
        return 1 << (self.log - 10)


class Plan(NamedTuple):
    """The launches of an op: ``parts``, then ``columns`` (blocks beyond 2^15; 2^``rows`` tiles high), and ``ends``."""

    parts: tuple[Part, ...]
    ends: Work
    columns: Work | None
    rows: int
    bases: Tensor


def _plan(table: Tensor, block: int, device: torch.device, decoding: bool) -> Plan:
    return work.kept(table, ("hadamard", block, device, decoding), lambda: _made(table, block, device, decoding))


def _made(table: Tensor, block: int, device: torch.device, decoding: bool) -> Plan:
    lines = table.cpu().numpy()
    numel = lines[:, 2].copy()
    if decoding:
        numel[lines[:, 0] == -1] = 0

    def listed(first: np.ndarray, count: np.ndarray) -> Work:
        """``count`` tiles of each row from number ``first`` on."""
        rows = np.repeat(np.arange(len(numel)), count)
        inside = np.arange(len(rows)) - (np.cumsum(count) - count)[rows] + first[rows]
        if len(rows) >= 2**31 or (len(inside) and inside.max() >= 2**31):
            raise ValueError(f"compcomm: {len(rows)} tiles of a Hadamard transform; a launch has fewer than 2^31")
        made = torch.from_numpy(np.stack((rows, inside), 1).astype(np.int32)).contiguous()
        return Work(work.on(table, device), made.to(device, non_blocking=True), len(rows))

    log, least = block.bit_length() - 1, TILE.bit_length() - 1
    tiles = numel >> least
    none = np.zeros_like(numel)
    ends = listed(tiles, (numel % TILE > 0).astype(np.int64))
    bases = torch.from_numpy(np.cumsum(tiles) - tiles).to(device, non_blocking=True)
    if block <= TILE or block > LARGEST:
        parts = (Part(listed(none, tiles), least, min(log, least)),)
    else:
        whole = Part(listed(none, numel >> log), log, log)
        rest = [
            Part(listed(numel >> (size + 1) << 1, numel >> size & 1), size, size)
            for size in range(log - 1, least - 1, -1)
        ]
        parts = (whole, *rest)
    parts = tuple(part for part in parts if part.work.programs)
    high = min(block >> least, triton.next_power_of_2(int(tiles.max(initial=0))))
    columns = None
    if block > LARGEST and high > 1:
        columns = listed(none, -(-np.where(tiles > 1, tiles, 0) // high) * (TILE // COLUMNS))
    return Plan(parts, ends, columns, high, bases)


@kernel("hadamard_forward")
def hadamard_forward(x, add, z, table, status, decay, add_scale, block, step):
    work.check_encode("hadamard_forward", x, add, z, table, status, section)
    device = z.device
    plan = _plan(table, block, device, False)
    form = {"HAS_ADD": add is not None, "WORDS": work.words(z), "ALIGNED": work.aligned(table, 32), "BLOCK": block}
    tiles = plan.parts[0].work.programs if plan.columns else 0
    large = scratch("hadamard large", tiles, torch.int32, device)
    for part in plan.parts:
        w = part.work
        launch(
            _forward, w.programs, x, add, z, w.table, w.tiles, status, large, decay, add_scale, step, **form,
            STAGES=part.stages, NEAR=32, FAR=part.far, PASSES=2 if plan.columns else 1, num_warps=part.far,
        )  # fmt: skip
    if plan.columns:
        w = plan.columns
        launch(
            _columns_forward, w.programs, z, w.table, w.tiles, plan.bases, large,
            WORDS=work.words(z), BLOCK=block, ROWS=plan.rows, COLUMNS=COLUMNS, TILE=TILE, num_warps=8,
        )  # fmt: skip
    w = plan.ends
    launch(_forward_ends, w.programs, x, add, z, w.table, w.tiles, status, decay, add_scale, step, **form, TILE=TILE)


@kernel("hadamard_inverse")
def hadamard_inverse(z, table, skip, out, scale, accumulate, block, step):
    work.check_decode("hadamard_inverse", z, table, skip, out, section)
    device = out.device
    plan = _plan(table, block, device, True)
    form = {"ACCUMULATE": accumulate, "ALIGNED": work.aligned(table, 32), "BLOCK": block}
    words = work.words(z)
    tiles = plan.parts[0].work.programs if plan.columns else 0
    partial = scratch("hadamard", tiles * TILE, torch.float32, device)
    for part in plan.parts:
        w = part.work
        launch(
            _inverse, w.programs, z, w.table, w.tiles, skip, out, partial, scale, step, **form, WORDS=words,
            STAGES=part.stages, NEAR=32, FAR=part.far, PASSES=2 if plan.columns else 1, num_warps=part.far,
        )  # fmt: skip
    if plan.columns:
        w = plan.columns
        launch(
            _columns_inverse, w.programs, partial, w.table, w.tiles, plan.bases, skip, out, scale, step, **form,
            ROWS=plan.rows, COLUMNS=COLUMNS, TILE=TILE, num_warps=8,
        )  # fmt: skip
    w = plan.ends
    launch(_inverse_ends, w.programs, z, w.table, w.tiles, skip, out, scale, step, **form, WORDS=words, TILE=TILE)
