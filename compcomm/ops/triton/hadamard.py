"""The randomised Hadamard transform. Formula, cut of a row and signs: ``ops/reference/hadamard.py``.

All numbers pass through memory once, those of blocks beyond 2^15 twice. Launches: ``hadamard_plan.py``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...scratch import scratch
from ..reference.hadamard import section
from . import work
from .butterflies import (
    flag_all,
    is_small,
    log2,
    places,
    put_numbers,
    root,
    sign_words,
    signed,
    size_bits,
    swapped,
    take_numbers,
    transform,
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
def _fits(y, PART: tl.constexpr, NEAR: tl.constexpr, FAR: tl.constexpr):
    """Where an element's block of PART has no number of 2^64 or more; in the order of ``places``."""
    N: tl.constexpr = y.shape[0]
    if PART == N:
        most = tl.broadcast_to(tl.max(size_bits(y), axis=0, keep_dims=True), [N])
    else:
        C: tl.constexpr = PART if PART < 32 else 32
        R: tl.constexpr = 1 if PART < 32 else (PART // 32 if PART < 32 * NEAR else NEAR)
        W: tl.constexpr = 1 if PART < 32 * NEAR else PART // (32 * NEAR)
        SHAPE: tl.constexpr = [NEAR // R, R, FAR // W, W, 32 // C, C]
        most = tl.max(tl.reshape(size_bits(y), SHAPE), axis=5, keep_dims=True)
        most = tl.max(tl.max(most, axis=3, keep_dims=True), axis=1, keep_dims=True)
        most = tl.reshape(tl.broadcast_to(most, SHAPE), [N])
    return is_small(most)


@triton.jit
def _quarter(
    x, add, x_at, add_at, p: tl.constexpr, met, decay, add_scale,
    HAS_ADD: tl.constexpr, NEAR: tl.constexpr, FAR: tl.constexpr,
):  # fmt: skip
    """Quarter p of a tile in the order of ``places``: y, which x gets, and ``met`` with 1 for every nonzero gradient and
    65536 for every number that is not finite or too large. By quarters, so that registers suffice for what is loaded."""
    M: tl.constexpr = 8 * NEAR * FAR
    i = tl.arange(0, M) + p * M
    i = swapped(i // 32, FAR, NEAR) * 32 + i % 32
    y, bad, alive = load_y(x, add, x_at, add_at, i, tl.full([M], 1, tl.int1), decay, add_scale, True, HAS_ADD)
    store(x + x_at + i, y, tl.full([M], 1, tl.int1))
    bad = bad | (is_small(size_bits(y)) == 0)
    return y, met + bad.to(tl.int32) * 65536 + alive.to(tl.int32)


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
    i = places(NEAR, FAR)
    x_from = x_at + first
    add_from = tl.where(add_at < 0, -1, add_at + first)
    met = tl.zeros([N // 4], tl.int32)
    y0, met = _quarter(x, add, x_from, add_from, 0, met, decay, add_scale, HAS_ADD, NEAR, FAR)
    y1, met = _quarter(x, add, x_from, add_from, 1, met, decay, add_scale, HAS_ADD, NEAR, FAR)
    y2, met = _quarter(x, add, x_from, add_from, 2, met, decay, add_scale, HAS_ADD, NEAR, FAR)
    y3, met = _quarter(x, add, x_from, add_from, 3, met, decay, add_scale, HAS_ADD, NEAR, FAR)
    y = tl.reshape(tl.permute(tl.join(tl.join(y0, y2), tl.join(y1, y3)), [1, 2, 0]), [N])
    flag_all(status, entry, met)
    fits = _fits(y, 2**STAGES, NEAR, FAR)
    if PASSES == 2:
        tl.store(large + tl.program_id(0), tl.max((fits == 0).to(tl.int32), axis=0))
    log = _log_of_block(tile, numel, BLOCK, STAGES, PASSES)
    words = sign_words(offset + first + tl.arange(0, NEAR * FAR) * 32, step, key, ALIGNED)
    t = tl.where(fits, signed(y * root(log), i, words), 0.0)
    t = transform(t, STAGES, NEAR, FAR)
    if 2**STAGES > 32 * NEAR:
        i = tl.arange(0, N)
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
        t = transform(t, STAGES, NEAR, FAR)
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
