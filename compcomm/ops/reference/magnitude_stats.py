"""Statistics of magnitudes above a threshold: what a selection by a fitted distribution asks of the data.

Per row five fp64 numbers: (count, sum, sum of squares, smallest, sum of log2), of a list of magnitudes. Sums run over
blocks of 512 by the fixed tree of sixteen fp32 lanes (``rows.lane_sum``), and the sums of the blocks by the same tree
in fp64, so that every backend finds the same threshold. The list is the whole row, or what exceeds a threshold, by
index; a column that was not asked for is 0, and so is the smallest of nothing.

    log2(a) = e + t*(c0 + c1 t + ... + c5 t^5),  a = 2^e (1 + t),  a at least 2^-126

in fp32, the polynomial from its last coefficient inwards: off by 2.2e-6 at most.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .rows import blocks, check_encode_rows, lane_sum, load, rows
from .topk import sizes

BLOCK = 512
_LOG = (
    float.fromhex("0x1.714b2ap+0"),
    float.fromhex("-0x1.6fc2a4p-1"),
    float.fromhex("0x1.d544e8p-2"),
    float.fromhex("-0x1.1e3f2cp-2"),
    float.fromhex("0x1.f9a7fep-4"),
    float.fromhex("-0x1.b17a34p-6"),
)


def log2(a: Tensor) -> Tensor:
    """The logarithm of base 2 of positive fp32 numbers, to 2.2e-6, with the same bits everywhere."""
    word = a.view(torch.int32).clamp(min=0x00800000)
    t = ((word & 0x007FFFFF) | 0x3F800000).view(torch.float32) - 1.0
    p = torch.full_like(t, _LOG[5])
    for c in _LOG[4::-1]:
        p = p * t + c
    return ((word >> 23) - 127).to(torch.float32) + p * t


def total(values: Tensor) -> float:
    """The sum by the tree of lanes, in blocks in fp32 and over the blocks in fp64."""
    if not values.numel():
        return 0.0
    sums = lane_sum(blocks(values, BLOCK)).to(torch.float64)
    return float(lane_sum(blocks(sums, -(-sums.numel() // 16) * 16)))


def _stats(a: Tensor, squares: bool, logs: bool) -> Tensor:
    fields = (
        float(a.numel()),
        total(a),
        total(a * a) if squares else 0.0,
        float(a.min()) if a.numel() else 0.0,
        total(log2(a)) if logs else 0.0,
    )
    return torch.tensor(fields, dtype=torch.float64)


def magnitude_stats(
    x: Tensor,
    add: Tensor | None,
    wire: Tensor,
    table: Tensor,
    status: Tensor,
    decay: float,
    add_scale: float,
    stats: Tensor,
    squares: bool,
    logs: bool,
) -> None:
    """``x <- y = decay*x + add_scale*add``; ``stats[row] <-`` the statistics of |y|. The wire is not touched."""
    check_encode_rows("magnitude_stats", x, add, wire, table, status, lambda _: 0)
    for r, row in enumerate(rows(table)):
        y = load(x, add, row, status, decay, add_scale)
        x[row.x : row.x + row.numel] = y
        stats[r] = _stats(sizes(y).view(torch.float32), squares, logs).to(stats.device)


def tail_stats(
    x: Tensor, list: Tensor, table: Tensor, threshold: Tensor, stats: Tensor, first: bool, squares: bool
) -> None:
    """``list[row] <- |x|`` above ``threshold[row]`` and their statistics; unless ``first``, of what the list holds.

    ``list`` is as long as ``x``; a row's part of it begins where the row begins, and ``stats[row, 0]`` says how many
    elements it holds; what lies behind those is of no meaning. NaN as a threshold leaves a row as it is.
    """
    limits = [float(t) for t in threshold.cpu()]
    for r, (row, limit) in enumerate(zip(rows(table), limits, strict=True)):
        if limit != limit:
            continue
        held = float(stats[r, 0])
        if row.numel < 0 or row.x < 0 or row.x + row.numel > min(x.numel(), list.numel()):
            raise ValueError(
                f"compcomm.tail_stats: table row {r}: elements {row.x}..{row.x + row.numel} are outside "
                f"x of {x.numel()} or list of {list.numel()} elements"
            )
        if not first and not 0 <= held <= row.numel:
            raise ValueError(f"compcomm.tail_stats: table row {r}: stats say {held} of {row.numel} elements")
        source = sizes(x[row.x : row.x + row.numel]).view(torch.float32) if first else list[row.x : row.x + int(held)]
        tail = source[source > limit]
        list[row.x : row.x + tail.numel()] = tail
        stats[r] = _stats(tail, squares, False).to(stats.device)
