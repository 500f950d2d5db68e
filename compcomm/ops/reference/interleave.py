"""Interleave: a row's blocks in another order, so that every stretch of the result has a part of every region.

Row of n elements in nb = ceil(n/grain) blocks: with each = (nb - 1) // ways, block i < ways * each is number i // ways
of way i % ways. Ways lie one after the other in the order 0, a, 2a, ... modulo ways, a near the golden section of ways
and coprime to it, so that neighbours come far apart. What is left over follows as it is: the last block, which may be
short, stays last.
``ways_of`` chooses ways from the size alone.

``permute_blocks``: y = decay*x + add_scale*add goes to x as it is and, in the order of the ways, to z (fp32, as bytes).
The table is that of all encoders, with k = ways (1: the natural order) and wire = the row's place in z.
``topk_scatter``: adds what a top-k message over pieces of permuted parameters holds to a tensor in natural order.
Column x of its table is the first element of the parameter; ``pieces`` int64 [rows, 3] has the parameter's elements,
the piece's first permuted element, and ways.
"""

from __future__ import annotations

from math import gcd, isqrt

import torch
from torch import Tensor

from .rows import Row, ceil_div, check_decode_rows, check_encode_rows, load, put, rows, take
from .topk import check_k, indices, section, values_at


def ways_of(numel: int, grain: int) -> int:
    """How many ways a parameter is split into: about sqrt(nb) blocks in each, 256 at most."""
    blocks = ceil_div(numel, grain)
    return max(1, blocks // max(1, min(256, isqrt(blocks))))


def permuted_blocks(numel: int, grain: int, ways: int, device: torch.device | None = None) -> Tensor:
    """The natural number of every permuted block; the last one is the last."""
    blocks = ceil_div(numel, grain)
    each, stride = max(0, blocks - 1) // ways, max(1, ways * 633 >> 10)
    while gcd(stride, ways) != 1:
        stride += 1
    way = torch.arange(ways, dtype=torch.int64, device=device) * stride % ways
    found = way[:, None] + ways * torch.arange(each, dtype=torch.int64, device=device)
    return torch.cat((found.reshape(-1), torch.arange(ways * each, blocks, dtype=torch.int64, device=device)))


def order(numel: int, grain: int, ways: int, device: torch.device | None = None) -> Tensor:
    """The natural index of every permuted element."""
    permuted = permuted_blocks(numel, grain, ways, device)
    flat = (permuted[:, None] * grain + torch.arange(grain, dtype=torch.int64, device=device)).reshape(-1)
    return flat[flat < numel]


def permute_blocks(
    x: Tensor | None,
    add: Tensor | None,
    wire: Tensor,
    table: Tensor,
    status: Tensor,
    decay: float,
    add_scale: float,
    grain: int,
) -> None:
    """``x <- y``, ``z <- y`` permuted."""
    check_encode_rows("permute_blocks", x, add, wire, table, status, lambda row: 4 * row.numel)
    for r, row in enumerate(rows(table)):
        if row.k < 1:
            raise ValueError(f"compcomm.permute_blocks: table row {r}: {row.k} ways (column 6); 1 or more are possible")
        if row.numel == 0:
            continue
        y = load(x, add, row, status, decay, add_scale)
        put(wire, row.wire, y[order(row.numel, grain, row.k, y.device)])
        if x is not None and row.x >= 0:
            x[row.x : row.x + row.numel] = y


def topk_scatter(wires: Tensor, table: Tensor, pieces: Tensor, out: Tensor, scale: float, grain: int) -> None:
    """``out[natural] += scale * value`` for every kept element of the one message."""
    check_k("topk_scatter", table, decoding=True)
    skip = torch.zeros(1 + max((row.entry for row in rows(table)), default=0), dtype=torch.uint8)
    check_decode_rows("topk_scatter", wires, table, skip, out, section)
    found: list[tuple[Row, Tensor, Tensor]] = []
    for r, (row, (whole, start, ways)) in enumerate(zip(rows(table), pieces.tolist(), strict=True)):
        if row.x == -1:
            continue
        where = f"compcomm.topk_scatter: table row {r}"
        if not (whole >= 0 and ways >= 1 and row.x + whole <= out.numel() and 0 <= start <= whole - row.numel):
            raise ValueError(f"{where}: a piece of {(whole, start, ways)} does not fit {out.numel()} elements")
        at = indices(wires[0], row, f"{where}: the section is corrupt")
        found.append((row, at, row.x + order(whole, grain, ways, out.device)[start + at]))
    for row, at, to in found:
        out[to] = out[to] + take(wires[0], row.wire + values_at(row), at.numel(), torch.float32) * scale
