"""The randomised Hadamard transform. Formula, cut of a row and signs: ``ops/reference/hadamard.py``.

All numbers pass through memory once, those of blocks beyond 2^15 twice. Launches: ``hadamard_plan.py``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..reference.hadamard import section
from ..scratch import scratch
from . import work
from .butterflies import (
    flag_all,
    further_stages,
    is_small,
    lane_stages,
    log2,
    places,
    put_numbers,
    root,
    sign_words,
    signed,
    size_bits,
    swapped,
    take_numbers,
    write,
)
from .common import load_y, row_of, store
from .hadamard_columns import columns_forward, columns_inverse
from .hadamard_ends import ends_forward, ends_inverse
from .hadamard_plan import TILE, plan
from .launch import launch
from .registry import kernel


@triton.jit
def _log_of_block(tile, numel, BLOCK: tl.constexpr, STAGES: tl.constexpr, PASSES: tl.constexpr):
    """log2 of the size of the blocks in a tile, or (PASSES: 2) of the one that holds the tile."""
    if PASSES == 1:
        return tl.full([], STAGES, tl.int32)
    else:
        return log2(tl.minimum(tile ^ (numel >> STAGES), BLOCK >> STAGES).to(tl.int32)) + STAGES


@triton.jit
def _fits(most, PART: tl.constexpr, NEAR: tl.constexpr, FAR: tl.constexpr):
    """Whether all of an element's block of PART is below 2^64, given magnitudes' bits in the order of ``places``."""
    C: tl.constexpr = PART if PART < 32 else 32
    R: tl.constexpr = 1 if PART < 32 else (PART // 32 if PART < 32 * NEAR else NEAR)
    W: tl.constexpr = 1 if PART < 32 * NEAR else PART // (32 * NEAR)
    SHAPE: tl.constexpr = [NEAR // R, R, FAR // W, W, 32 // C, C]
    most = tl.max(tl.reshape(most, SHAPE), axis=1, keep_dims=True)
    most = tl.max(tl.max(most, axis=3, keep_dims=True), axis=5, keep_dims=True)
    return is_small(tl.reshape(tl.broadcast_to(most, SHAPE), [32 * NEAR * FAR]))


@triton.jit
def _quarter(
    x, add, x_at, add_at, decay, add_scale, size, words, met, most, p: tl.constexpr,
    HAS_ADD: tl.constexpr, STAGES: tl.constexpr, NEAR: tl.constexpr, FAR: tl.constexpr,
):  # fmt: skip
    """Quarter p of a tile in the order of ``places``, as far as lanes go; x gets y. By quarters, so that few registers
    hold what was loaded. Returns the numbers, their magnitudes' bits, and per lane ``met``, plus 1 for every nonzero
    gradient and 65536 for what is not finite or too large, and the ``most`` of the magnitudes."""
    M: tl.constexpr = 8 * NEAR * FAR
    i = tl.arange(0, M) + p * M
    i = swapped(i // 32, FAR, NEAR) * 32 + i % 32
    all_ = tl.full([M], 1, tl.int1)
    y, bad, alive = load_y(x, add, x_at, add_at, i, all_, decay, add_scale, True, HAS_ADD)
    store(x + x_at + i, y, all_)
    own = size_bits(y)
    found = (bad | (is_small(own) == 0)).to(tl.int32) * 65536 + alive.to(tl.int32)
    met |= tl.sum(found, axis=0)
    most = tl.maximum(most, tl.max(own, axis=0))
    return lane_stages(signed(y * size, i, words), STAGES), own, met, most


@triton.jit
def _joined(a, b, c, d):
    """Four quarters."""
    return tl.reshape(tl.permute(tl.join(tl.join(a, c), tl.join(b, d)), [1, 2, 0]), [4 * a.shape[0]])


@triton.jit(do_not_specialize=["step"])
def _forward(
    x, add, z, table, tiles, status, large, decay, add_scale, step,
    HAS_ADD: tl.constexpr, WORDS: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
    STAGES: tl.constexpr, NEAR: tl.constexpr, FAR: tl.constexpr, PASSES: tl.constexpr,
):  # fmt: skip
    """A tile of whole blocks of 2^STAGES, or (PASSES: 2) of a larger block, which ``columns_forward`` goes on with."""
    N: tl.constexpr = 32 * NEAR * FAR
    _, tile, x_at, add_at, numel, wire_at, offset, key, _, entry = row_of(table, tiles)
    first = tile * N
    x_at += first
    add_at = tl.where(add_at < 0, -1, add_at + first)
    size = root(_log_of_block(tile, numel, BLOCK, STAGES, PASSES))
    words = sign_words(offset + first + tl.arange(0, NEAR * FAR) * 32, step, key, ALIGNED)
    met = tl.zeros([], tl.int32)
    a, p, met, most = _quarter(
        x, add, x_at, add_at, decay, add_scale, size, words, met, met, 0, HAS_ADD, STAGES, NEAR, FAR
    )
    b, q, met, most = _quarter(
        x, add, x_at, add_at, decay, add_scale, size, words, met, most, 1, HAS_ADD, STAGES, NEAR, FAR
    )
    c, r, met, most = _quarter(
        x, add, x_at, add_at, decay, add_scale, size, words, met, most, 2, HAS_ADD, STAGES, NEAR, FAR
    )
    d, s, met, most = _quarter(
        x, add, x_at, add_at, decay, add_scale, size, words, met, most, 3, HAS_ADD, STAGES, NEAR, FAR
    )
    t = _joined(a, b, c, d)
    flag_all(status, entry, met)
    if 2**STAGES == N:
        t = tl.where(tl.zeros([N], tl.int32) + most < 0x5F800000, t, 0.0)
    else:
        t = tl.where(_fits(_joined(p, q, r, s), 2**STAGES, NEAR, FAR), t, 0.0)
    if PASSES == 2:
        tl.store(large + tl.program_id(0), (most >= 0x5F800000).to(tl.int32))
    t = further_stages(t, STAGES, NEAR, FAR)
    i = tl.arange(0, N) if 2**STAGES > 32 * NEAR else places(NEAR, FAR)
    put_numbers(z, wire_at + first * 4, i, t, tl.full([N], 1, tl.int1), WORDS)


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
    i = places(NEAR, FAR)
    all_ = tl.full([N], 1, tl.int1)
    if tl.load(skip + entry) == 0:
        log = _log_of_block(tile, numel, BLOCK, STAGES, PASSES)
        t = take_numbers(z, wire_at + first * 4, i, all_, WORDS) * root(log)
        t = further_stages(lane_stages(t, STAGES), STAGES, NEAR, FAR)
        if 2**STAGES > 32 * NEAR:
            i = tl.arange(0, N)
        if PASSES == 1:
            t = signed(t, i, sign_words(offset + first + tl.arange(0, NEAR * FAR) * 32, step, key, ALIGNED))
            write(out, x_at + first, i, t, all_, scale, ACCUMULATE)
        else:
            tl.store(partial + tl.program_id(0).to(tl.int64) * N + i, t)
    elif (ACCUMULATE == 0) & (PASSES == 1):
        store(out + x_at + first + i, tl.zeros([N], tl.float32), all_)


@kernel("hadamard_forward")
def hadamard_forward(x, add, z, table, status, decay, add_scale, block, step):
    work.check_encode("hadamard_forward", x, add, z, table, status, section)
    device = z.device
    cut = plan(table, block, device, False)
    form = {"HAS_ADD": add is not None, "WORDS": work.words(z), "ALIGNED": work.aligned(table, 32), "BLOCK": block}
    tiles = cut.parts[0].work.programs if cut.columns else 0
    large = scratch("hadamard large", tiles, torch.int32, device)
    for part in cut.parts:
        w = part.work
        launch(
            _forward, w.programs, x, add, z, w.table, w.tiles, status, large, decay, add_scale, step, **form,
            STAGES=part.stages, NEAR=32, FAR=part.far, PASSES=2 if cut.columns else 1, num_warps=part.far,
        )  # fmt: skip
    if cut.columns:
        w = cut.columns
        launch(
            columns_forward, w.programs, z, w.table, w.tiles, cut.bases, large,
            WORDS=work.words(z), BLOCK=block, ROWS=cut.rows, COLUMNS=cut.wide, TILE=TILE, num_warps=8,
        )  # fmt: skip
    w = cut.ends
    launch(ends_forward, w.programs, x, add, z, w.table, w.tiles, status, decay, add_scale, step, **form, TILE=TILE)


@kernel("hadamard_inverse")
def hadamard_inverse(z, table, skip, out, scale, accumulate, block, step):
    work.check_decode("hadamard_inverse", z, table, skip, out, section)
    device = out.device
    cut = plan(table, block, device, True)
    form = {"ACCUMULATE": accumulate, "ALIGNED": work.aligned(table, 32), "BLOCK": block}
    words = work.words(z)
    tiles = cut.parts[0].work.programs if cut.columns else 0
    partial = scratch("hadamard", tiles * TILE, torch.float32, device)
    for part in cut.parts:
        w = part.work
        launch(
            _inverse, w.programs, z, w.table, w.tiles, skip, out, partial, scale, step, **form, WORDS=words,
            STAGES=part.stages, NEAR=32, FAR=part.far, PASSES=2 if cut.columns else 1, num_warps=part.far,
        )  # fmt: skip
    if cut.columns:
        w = cut.columns
        launch(
            columns_inverse, w.programs, partial, w.table, w.tiles, cut.bases, skip, out, scale, step, **form,
            ROWS=cut.rows, COLUMNS=cut.wide, TILE=TILE, num_warps=8,
        )  # fmt: skip
    w = cut.ends
    launch(ends_inverse, w.programs, z, w.table, w.tiles, skip, out, scale, step, **form, WORDS=words, TILE=TILE)
