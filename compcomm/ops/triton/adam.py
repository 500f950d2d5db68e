"""``adam``, ``momentum`` and ``descend``: one launch for all parameters. Formulas: ``ops/reference/adam.py``.

Parameters and gradients are tensors of their own, in fp32, bfloat16 or float16, so a kernel reads from a table where
they lie and of what type they are (``ops/adam.py`` packs it). Addresses of gradients change now and then: tables are
kept by what they say, and a step whose addresses were met before uploads nothing. What the table cannot describe
(fp64, other strides) goes to the reference's torch operators.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from ctypes import c_float
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.graph import increment_version

from .. import adam as packing
from ..reference import adam as reference
from ..reference.adam import given, pieces
from .common import finite, flag, store
from .launch import launch
from .registry import kernel

TILE = 2048
KEPT = 256  # tables
Tensors = Sequence[Tensor]


@triton.jit
def piece_of(table, tiles, KIND: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr):
    """This program's elements: (param, grad, kinds, start, i, mask); elements ``i`` (int32) of ``param`` and ``grad``
    (addresses) from the tile's begin on, and of the moments from ``start`` on."""
    p = tl.program_id(0).to(tl.int64)
    line = table + 5 * tl.load(tiles + 2 * p).to(tl.int64)
    first = tl.load(tiles + 2 * p + 1).to(tl.int64) * TILE
    kinds = tl.load(line + 4).to(tl.int32) if KIND < 0 else KIND
    param, grad = tl.load(line), tl.load(line + 1)
    start = tl.load(line + 3) + first
    left = tl.load(line + 2) - first
    if ALIGNED:
        param, grad = tl.multiple_of(param, 16), tl.multiple_of(grad, 16)
        start, left = tl.multiple_of(start, 4), tl.multiple_of(left, 4)
    i = tl.arange(0, TILE)
    return param, grad, kinds, first, start, i, i < left


@triton.jit
def at(address, first, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """A pointer to element ``first`` of the tensor at an address."""
    pointer = address.to(tl.pointer_type(TYPE)) + first
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def read(address, kind, first, i, mask, ALIGNED: tl.constexpr):
    """The elements in fp32; zeros where there is no tensor."""
    if kind == 0:
        x = tl.load(at(address, first, tl.float32, ALIGNED) + i, mask=mask, other=0.0)
    elif kind == 1:
        x = tl.load(at(address, first, tl.bfloat16, ALIGNED) + i, mask=mask, other=0.0).to(tl.float32)
    elif kind == 2:
        x = tl.load(at(address, first, tl.float16, ALIGNED) + i, mask=mask, other=0.0).to(tl.float32)
    else:
        x = tl.zeros_like(i).to(tl.float32)
    return x


@triton.jit
def write(address, kind, first, i, mask, x, ALIGNED: tl.constexpr):
    if kind == 0:
        store(at(address, first, tl.float32, ALIGNED) + i, x, mask)
    elif kind == 1:
        store(at(address, first, tl.bfloat16, ALIGNED) + i, x, mask)
    else:
        store(at(address, first, tl.float16, ALIGNED) + i, x, mask)


@triton.jit
def _adam(
    mean, square, table, tiles, beta1, rest1, beta2, rest2, scale, rate, correction, eps, decay, l2,
    L2: tl.constexpr, DECAY: tl.constexpr, KIND: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    param, grad, kinds, first, start, i, mask = piece_of(table, tiles, KIND, ALIGNED, TILE)
    m = tl.load(mean + start + i, mask=mask, other=0.0)
    v = tl.load(square + start + i, mask=mask, other=0.0)
    p = read(param, kinds % 4, first, i, mask, ALIGNED)
    g = read(grad, kinds // 4, first, i, mask, ALIGNED) * scale
    if L2:
        g = g + p * l2
    m = m * beta1 + g * rest1
    v = v * beta2 + g * rest2 * g
    step = tl.div_rn(m, tl.sqrt_rn(v) * correction + eps) * rate
    if DECAY:
        step = step + p * decay
    tl.store(mean + start + i, m, mask=mask)
    tl.store(square + start + i, v, mask=mask)
    write(param, kinds % 4, first, i, mask, p - step, ALIGNED)


@triton.jit
def _momentum(
    mean, out, table, tiles, status, beta, rest, scale, l2,
    L2: tl.constexpr, KIND: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    param, grad, kinds, first, start, i, mask = piece_of(table, tiles, KIND, ALIGNED, TILE)
    m = tl.load(mean + start + i, mask=mask, other=0.0)
    g = read(grad, kinds // 4, first, i, mask, ALIGNED)
    bad = finite(g) == 0
    g = g * scale
    if L2:
        g = g + read(param, kinds % 4, first, i, mask, ALIGNED) * l2
    tl.store(out + start + i, m * beta + g * rest, mask=mask)
    flag(status, 0, bad)


@triton.jit
def _descend(
    mean, denominator, table, tiles, rate, decay,
    DECAY: tl.constexpr, KIND: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    param, _, kinds, first, start, i, mask = piece_of(table, tiles, KIND, ALIGNED, TILE)
    m = tl.load(mean + start + i, mask=mask, other=0.0)
    d = tl.load(denominator + start + i, mask=mask, other=1.0)
    p = read(param, kinds % 4, first, i, mask, ALIGNED)
    step = tl.div_rn(m, d) * rate
    if DECAY:
        step = step + p * decay
    write(param, kinds % 4, first, i, mask, p - step, ALIGNED)


class _Sent(NamedTuple):
    """A table on the device, with the programs of its pieces. ``host``: what the upload reads from."""

    table: Tensor
    tiles: Tensor
    programs: int
    kind: int  # of all pieces, -1: of several kinds
    aligned: bool
    host: Tensor


def _upload(host: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """A copy on the device, and what must live until it is made."""
    if device.type == "cpu":
        return host, host
    host = host.pin_memory()
    return host.to(device, non_blocking=True), host


@lru_cache(maxsize=KEPT)
def _tiles(numels: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """(piece, tile of the piece) for each program, and what the upload reads from."""
    counts = -(-np.array(numels, dtype=np.int64) // TILE)
    which = np.repeat(np.arange(len(numels)), counts)
    inside = np.arange(len(which)) - (np.cumsum(counts) - counts)[which]
    return _upload(torch.from_numpy(np.stack((which, inside), 1).astype(np.int32)), device)


def _sent(words: array[int], device: torch.device) -> _Sent:
    lines = np.frombuffer(words.tobytes(), dtype=np.int64).reshape(-1, 5).copy()
    tiles, _ = _tiles(tuple(lines[:, 2].tolist()), device)
    kinds = np.unique(lines[:, 4])
    aligned = not ((lines[:, :2] % 16).any() or (lines[:, 2:4] % 4).any())
    table, host = _upload(torch.from_numpy(lines), device)
    return _Sent(table, tiles, len(tiles), int(kinds[0]) if len(kinds) == 1 else -1, aligned, host)


_kept: dict[tuple[object, ...], _Sent] = {}


def _found(
    op: str, packed: packing.Packed, mean: Tensor, params: Tensors, grads: Tensors,
    starts: Sequence[int],
) -> _Sent:  # fmt: skip
    """The pieces on the device. All are checked when those are new, or when some are not among them; nothing is written
    unless all is right."""
    words, others = packed.words, packed.others
    key = (words.tobytes(), mean.numel(), mean.device)
    sent = _kept.get(key)
    if sent is None or others:
        pieces(op, params, grads, starts, mean.numel(), op == "momentum")
        for name, tensors in (("params", params), ("grads", grads)):
            for i, t in enumerate(tensors):
                if t.numel() and t.device != mean.device:
                    raise ValueError(f"compcomm.{op}: {name}[{i}] is on {t.device}, but mean on {mean.device}")
    if sent is None:
        if len(_kept) >= KEPT:
            _kept.pop(next(iter(_kept)), None)
        sent = _kept[key] = _sent(words, mean.device)
    return sent


def _f32(*factors: float) -> list[float]:
    return [c_float(f).value for f in factors]


@kernel("adam")
def adam(params, grads, starts, mean, square, beta1, beta2, scale, rate, correction, eps, decay, l2):
    packed = packing.pack(params, grads, starts, packing.CODES)
    sent = _found("adam", packed, mean, params, grads, starts)
    launch(
        _adam, sent.programs, mean, square, sent.table, sent.tiles,
        *_f32(beta1, 1.0 - beta1, beta2, 1.0 - beta2, scale, rate, correction, eps, decay, l2),
        L2=given(l2), DECAY=given(decay), KIND=sent.kind, ALIGNED=sent.aligned, TILE=TILE,
    )  # fmt: skip
    if packed.others:
        p, g, s = zip(*packed.others, strict=True)
        reference.adam(p, g, s, mean, square, beta1, beta2, scale, rate, correction, eps, decay, l2)
    increment_version(params)


@kernel("momentum")
def momentum(grads, params, starts, mean, out, beta, scale, l2, status):
    packed = packing.pack(params, grads, starts, packing.CODES if given(l2) else packing.UNREAD, True)
    sent = _found("momentum", packed, mean, params, grads, starts)
    launch(
        _momentum, sent.programs, mean, out, sent.table, sent.tiles, status, *_f32(beta, 1.0 - beta, scale, l2),
        L2=given(l2), KIND=sent.kind, ALIGNED=sent.aligned, TILE=TILE,
    )  # fmt: skip
    if packed.others:
        p, g, s = zip(*packed.others, strict=True)
        reference.momentum(g, p, s, mean, out, beta, scale, l2, status)


@kernel("descend")
def descend(params, starts, mean, denominator, rate, decay):
    packed = packing.pack_params(params, starts)
    sent = _found("descend", packed, mean, params, params, starts)
    launch(
        _descend, sent.programs, mean, denominator, sent.table, sent.tiles, *_f32(rate, decay),
        DECAY=given(decay), KIND=sent.kind, ALIGNED=sent.aligned, TILE=TILE,
    )  # fmt: skip
    if packed.others:
        p, _, s = zip(*packed.others, strict=True)
        reference.descend(p, s, mean, denominator, rate, decay)
    increment_version(params)
