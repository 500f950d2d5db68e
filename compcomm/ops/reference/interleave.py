"""Interleave: a row's blocks dealt out like cards, so that every share gets its part of every region.

Row of n elements in nb = ceil(n/grain) blocks: block i goes to share ``(i + first) % ways``, first = -nb modulo ways,
and the shares lie one after the other, each with its blocks in order. So the last block, which may be short, ends the
last share. Every share has nb // ways blocks, the last nb % ways of them one more.

``deal``: y = decay*x + add_scale*add goes to x as it is and, dealt out, to z (fp32, as bytes). The table is that of all
encoders, with k = ways (1: not dealt) and wire = the row's place in z.
``topk_undeal``: adds what a top-k message over shares holds to a tensor in natural order. Column x of its table is the
first element of the parameter; ``deals`` int64 [rows, 3] has the parameter's elements, the share's first natural block,
and the number of ways.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .rows import Row, ceil_div, check_decode_rows, check_encode_rows, load, put, rows, take
from .topk import check_k, indices, section, values_at

MAX_WAYS = 4096


def order(numel: int, grain: int, ways: int, device: torch.device | None = None) -> Tensor:
    """The natural index of every dealt element."""
    i = torch.arange(ceil_div(numel, grain), device=device)
    share = (i - len(i)) % ways  # -blocks modulo ways is the share of block 0
    dealt = torch.sort(share, stable=True).indices
    flat = (dealt[:, None] * grain + torch.arange(grain, device=device)).reshape(-1)
    return flat[flat < numel]


def bounds(numel: int, grain: int, ways: int) -> list[int]:
    """Where each share begins among the dealt elements, and where the last one ends."""
    each, more = divmod(ceil_div(numel, grain), ways)
    found = [0]
    for share in range(ways):
        found.append(min(numel, found[-1] + (each + (share >= ways - more)) * grain))
    return found


def first_block(numel: int, grain: int, ways: int, share: int) -> int:
    """The natural number of a share's first block."""
    return (share + ceil_div(numel, grain)) % ways


def deal(
    x: Tensor | None,
    add: Tensor | None,
    wire: Tensor,
    table: Tensor,
    status: Tensor,
    decay: float,
    add_scale: float,
    grain: int,
) -> None:
    """``x <- y``, ``z <- y`` dealt out."""
    check_encode_rows("deal", x, add, wire, table, status, lambda row: 4 * row.numel)
    for r, row in enumerate(rows(table)):
        if not 1 <= row.k <= MAX_WAYS:
            raise ValueError(f"compcomm.deal: table row {r}: {row.k} ways (column 6); 1 to {MAX_WAYS} are possible")
        if row.numel == 0:
            continue
        y = load(x, add, row, status, decay, add_scale)
        put(wire, row.wire, y[order(row.numel, grain, row.k, y.device)])
        if x is not None and row.x >= 0:
            x[row.x : row.x + row.numel] = y


def topk_undeal(wires: Tensor, table: Tensor, deals: Tensor, out: Tensor, scale: float, grain: int) -> None:
    """``out[natural] += scale * value`` for every kept element of the one message."""
    check_k("topk_undeal", table, decoding=True)
    skip = torch.zeros(1 + max((row.entry for row in rows(table)), default=0), dtype=torch.uint8)
    check_decode_rows("topk_undeal", wires, table, skip, out, section)
    found: list[tuple[Row, Tensor, Tensor]] = []
    for r, (row, (whole, first, ways)) in enumerate(zip(rows(table), deals.tolist(), strict=True)):
        if row.x == -1 or row.numel == 0:
            continue
        where = f"compcomm.topk_undeal: table row {r}"
        last = row.numel - 1
        fits = whole >= 0 and first >= 0 and ways >= 1 and row.x + whole <= out.numel()
        if not fits or (first + ways * (last // grain)) * grain + last % grain >= whole:
            raise ValueError(f"{where}: shares of {(whole, first, ways)} do not fit {out.numel()} elements")
        at = indices(wires[0], row, f"{where}: the section is corrupt")
        found.append((row, at, row.x + (first + ways * (at // grain)) * grain + at % grain))
    for row, at, to in found:
        out[to] = out[to] + take(wires[0], row.wire + values_at(row), at.numel(), torch.float32) * scale
