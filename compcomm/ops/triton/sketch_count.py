"""The count sketch. Formula: ``ops/reference/sketch.py``.

A sum grows in the order of its elements, so those are sorted by their sums first (``torch.sort``, stable, for all rows
together); then a lane goes over the elements of one sum. Scratch memory: 24 bytes per element and what the sort takes.
The decoder is one pass, with a gather from each message.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.sketch import section
from ..scratch import scratch
from . import work
from .common import finish, philox, put32, row_of, store, take_f32
from .launch import launch
from .registry import kernel
from .sketch import TILE, checked_k, take_input

SUMS = 256


@triton.jit
def _places(j, k, step, key):
    """(which sum, int64; whether its sign is minus) of the elements ``j`` (int64) of a parameter."""
    c0 = (((j >> 6) * 16 + (j & 15)) & 0xFFFFFFFF).to(tl.uint32)
    w0, w1, w2, w3 = philox(c0, step, 0, 3, key)
    v = (j >> 4) & 3
    word = tl.where(v < 2, tl.where(v == 0, w0, w1), tl.where(v == 2, w2, w3))
    return ((word >> 1).to(tl.int64) * k) >> 31, (word & 1) != 0


@triton.jit(do_not_specialize=["step"])
def _keys(table, tiles, bases, sums, keys, y_all, step, TILE: tl.constexpr):
    """The number of every element's sum among those of all rows; y gets its sign."""
    row, tile, _, _, numel, _, offset, key, k, _ = row_of(table, tiles)
    first = tile * TILE
    i = tl.arange(0, TILE)
    mask = i < numel - first
    place, minus = _places(offset + first + i, k, step, key)
    base = tl.load(bases + row) + first
    tl.store(keys + base + i, (tl.load(sums + row) + place).to(keys.dtype.element_ty), mask=mask)
    y = tl.load(y_all + base + i, mask=mask, other=0.0)
    tl.store(y_all + base + i, -y, mask=mask & minus)


@triton.jit
def _first_at_least(keys, total, wanted, STEPS: tl.constexpr):
    """How many of the ascending keys are less than ``wanted`` (a tensor)."""
    low = tl.zeros_like(wanted)
    high = low + total
    for _ in range(STEPS):
        middle = (low + high) >> 1
        below = tl.load(keys + middle, mask=low < high, other=0).to(tl.int64) < wanted
        open_ = low < high
        low = tl.where(open_ & below, middle + 1, low)
        high = tl.where(open_ & (below == 0), middle, high)
    return low


@triton.jit
def _sum(
    wire, table, tiles, sums, refused, gain, keys, order, terms, total,
    WORDS: tl.constexpr, SUMS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    row, tile, _, _, _, wire_at, _, _, k, _ = row_of(table, tiles)
    s = tile * SUMS + tl.arange(0, SUMS)
    used = s < k
    value = tl.zeros([SUMS], tl.float32)
    if tl.load(refused + row) == 0:
        own = tl.load(sums + row) + s
        at = _first_at_least(keys, total, tl.where(used, own, 0), STEPS)
        end = tl.where(used, _first_at_least(keys, total, tl.where(used, own + 1, 0), STEPS), at)
        for t in range(tl.max(end - at, axis=0)):
            more = at + t < end
            e = tl.load(order + at + t, mask=more, other=0)
            value = tl.where(more, value + tl.load(terms + e, mask=more, other=0.0), value)
        value = value * tl.load(gain + row)
    put32(wire, wire_at + 4 * s, value, used, WORDS)


@triton.jit(do_not_specialize=["step"])
def _leave(x, wire, table, tiles, bases, refused, terms, step, WORDS: tl.constexpr, TILE: tl.constexpr):
    """x <- y less what the sums say of it."""
    row, tile, x_at, _, numel, wire_at, offset, key, k, _ = row_of(table, tiles)
    if tl.load(refused + row) == 0:
        first = tile * TILE
        i = tl.arange(0, TILE)
        mask = i < numel - first
        place, minus = _places(offset + first + i, k, step, key)
        sent = take_f32(wire, wire_at + 4 * place, mask, WORDS)
        term = tl.load(terms + tl.load(bases + row) + first + i, mask=mask, other=0.0)
        store(x + x_at + first + i, tl.where(minus, -term, term) - tl.where(minus, -sent, sent), mask)


@triton.jit(do_not_specialize=["step"])
def _decode(
    wires, messages, stride, table, tiles, skip, out, scale, step,
    ACCUMULATE: tl.constexpr, WORDS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    _, tile, x_at, _, numel, wire_at, offset, key, k, entry = row_of(table, tiles)
    first = tile * TILE
    i = tl.arange(0, TILE)
    mask = i < numel - first
    total = tl.zeros([TILE], tl.float32)
    if tl.load(skip + entry) == 0:
        place, minus = _places(offset + first + i, k, step, key)
        message = wires
        for m in range(messages):
            sent = take_f32(message, wire_at + 4 * place, mask, WORDS)
            v = tl.where(minus, -sent, sent)
            total = tl.where(m == 0, v, total + v)
            message += stride
        finish(out, x_at + first, i, mask, total, scale, ACCUMULATE)
    elif ACCUMULATE == 0:
        store(out + x_at + first + i, total, mask)


def _sums(table: Tensor, device: torch.device) -> tuple[Tensor, int]:
    """How many sums the rows before each have, and all of them."""

    def make() -> tuple[Tensor, int]:
        k = table[:, 6].cpu()
        return (k.cumsum(0) - k).to(device, non_blocking=True), int(k.sum())

    return work.kept(table, ("count sums", device), make)


@kernel("count_encode")
def count_encode(x, add, wire, table, status, decay, add_scale, gain, step):
    checked_k("count_encode", table, False)
    work.check_encode("count_encode", x, add, wire, table, status, section)
    device, words = x.device, work.words(wire)
    given = take_input(x, add, table, status, decay, add_scale)
    sums, count = _sums(table, device)
    kind, total = torch.int32 if count < 1 << 31 else torch.int64, given.y.numel()
    keys = scratch("count keys", total, kind, device)
    ordered, order = scratch("count ordered", total, kind, device), scratch("count order", total, torch.int64, device)
    w, form = given.tiles, {"WORDS": words, "TILE": TILE}
    launch(_keys, w.programs, w.table, w.tiles, given.bases, sums, keys, given.y, step, TILE=TILE)
    torch.sort(keys, stable=True, out=(ordered, order))
    s = work.tiles(table, SUMS, device, column=6)
    launch(
        _sum, s.programs, wire, s.table, s.tiles, sums, given.refused, work.on(gain, device), ordered,
        order, given.y, total, WORDS=words, SUMS=SUMS, STEPS=total.bit_length() + 1,
    )  # fmt: skip
    launch(_leave, w.programs, x, wire, w.table, w.tiles, given.bases, given.refused, given.y, step, **form)


@kernel("count_decode")
def count_decode(wires, table, skip, out, scale, accumulate, step):
    checked_k("count_decode", table, True)
    work.check_decode("count_decode", wires, table, skip, out, section)
    w = work.tiles(table, TILE, out.device, decoding=True)
    launch(
        _decode, w.programs, wires, wires.shape[0], wires.stride(0), w.table, w.tiles, skip, out, scale, step,
        ACCUMULATE=accumulate, WORDS=work.words(wires), TILE=TILE,
    )  # fmt: skip
