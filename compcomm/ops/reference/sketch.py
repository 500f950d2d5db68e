"""Count and Gaussian sketches: k = s numbers per row (table column 6), y = R x, decoded as R^T y; E[R^T R] = 1.

Count (Charikar, Chen, Farach-Colton 2002): element j goes to one of the s sums, with a sign:

    word = of element j;  row = ((word >> 1) * s) >> 31;  sign = minus if word & 1
    y[row] <- y[row] + sign * x_j  in the order of j, from zero;  y <- y * gain;  value_j = sign * y[row]

Gaussian: y_i = (sum_j t_ij x_j) * (c * gain),  value_j = (sum_i t_ij y_i) * c,  c = fl(s^-1/2), with t_ij one of 65536
numbers (``quantiles``). The first sum is the fixed tree of sixteen lanes, the second goes in the order of i.

Random numbers (Philox, no rank: all ranks share R; ``j`` counts from the parameter's begin). Count: element j takes
word ``j % 64 // 16`` of counter ``(j // 64 * 16 + j % 16, step, 0, 3)``. Gaussian: t_ij is the quantile whose number is
the dither (``philox.py``) of element j with i in the place of the rank, from stream 4.

A row with a number of 2^64 or more, whose sums may overflow, is sent as zeros, stays in x and sets ``status[0]``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .philox import dither_of, philox
from .rows import Row, check_encode_rows, decode, flag, lane_sum, load, put, rows, take

LIMIT = 2.0**64
_COUNT, _GAUSS = 3, 4  # streams
_ENTRIES = 1 << 20  # of a Gaussian matrix at a time


def section(row: Row) -> int:
    """Bytes of a row."""
    return 4 * row.k


def check_k(op: str, table: Tensor, *, decoding: bool) -> None:
    """Every row that has elements has sums."""
    for r, row in enumerate(rows(table)):
        if not (decoding and row.x == -1) and not int(row.numel > 0) <= row.k < 1 << 31:
            raise ValueError(f"compcomm.{op}: table row {r}: k (column 6) is {row.k}; a sketch has 1 to 2^31 - 1 sums")


def _input(
    x: Tensor, add: Tensor | None, wire: Tensor, row: Row, status: Tensor, decay: float, add_scale: float
) -> Tensor | None:
    """y, or None where it is empty or too large: then zeros are sent, and x keeps it."""
    y = load(x, add, row, status, decay, add_scale)
    x[row.x : row.x + row.numel] = y
    if row.numel and float(y.abs().max()) < LIMIT:
        return y
    flag(status, 0, y != 0)
    wire[row.wire : row.wire + 4 * row.k] = 0
    return None


def _places(row: Row, step: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(which sum, +1 or -1) of each element."""
    first, last = row.offset // 64, -(-(row.offset + row.numel) // 64)
    counters = torch.arange(16 * first, 16 * last, dtype=torch.int64, device=device)
    words = torch.stack(philox(counters, step, 0, _COUNT, row.key)).view(4, -1, 16).permute(1, 0, 2).reshape(-1)
    words = words[row.offset - 64 * first :][: row.numel]
    return (words >> 1) * row.k >> 31, 1.0 - 2.0 * (words & 1).to(torch.float32)


def _add_in_order(terms: Tensor, place: Tensor, count: int) -> Tensor:
    """Sums of the terms of each place, in their order: the first of all places, then the second of all, ..."""
    order = torch.argsort(place, stable=True)
    sizes = torch.bincount(place, minlength=count)
    turn = torch.arange(len(place), dtype=torch.int64, device=place.device) - (sizes.cumsum(0) - sizes)[place[order]]
    total = torch.zeros(count, dtype=torch.float32, device=place.device)
    for t in range(int(sizes.max())):
        now = order[turn == t]
        total[place[now]] = total[place[now]] + terms[now]
    return total


def count_encode(
    x: Tensor,
    add: Tensor | None,
    wire: Tensor,
    table: Tensor,
    status: Tensor,
    decay: float,
    add_scale: float,
    gain: Tensor,
    step: int,
) -> None:
    """``wire <- gain * R y``, ``x <- y - R^T wire``."""
    check_k("count_encode", table, decoding=False)
    check_encode_rows("count_encode", x, add, wire, table, status, section)
    for r, row in enumerate(rows(table)):
        y = _input(x, add, wire, row, status, decay, add_scale)
        if y is not None:
            place, sign = _places(row, step, y.device)
            sums = _add_in_order(y * sign, place, row.k) * gain[r]
            put(wire, row.wire, sums)
            x[row.x : row.x + row.numel] = y - sign * sums[place]


def count_decode(
    wires: Tensor, table: Tensor, skip: Tensor, out: Tensor, scale: float, accumulate: bool, step: int
) -> None:
    """``out (+)= scale * R^T (sum of the messages)``."""
    check_k("count_decode", table, decoding=True)

    def values(message: Tensor, row: Row) -> Tensor:
        place, sign = _places(row, step, message.device)
        return sign * take(message, row.wire, row.k, torch.float32)[place]

    decode("count_decode", wires, table, skip, out, scale, accumulate, section, values)


def _matrix(row: Row, first: int, count: int, quantiles: Tensor, step: int) -> Tensor:
    """t_ij for ``count`` rows from ``first`` on: ``[count, numel]``."""
    i = torch.arange(first, first + count, dtype=torch.int64, device=quantiles.device)
    return quantiles[dither_of(row.key, row.offset, row.numel, step, i, _GAUSS)]


def _gauss_values(y: Tensor, row: Row, quantiles: Tensor, step: int) -> Tensor:
    total = torch.zeros(row.numel, dtype=torch.float32, device=y.device)
    group = max(1, _ENTRIES // row.numel)
    for first in range(0, row.k, group):
        for i, line in enumerate(_matrix(row, first, min(group, row.k - first), quantiles, step)):
            total = total + line * y[first + i]
    return total * (1.0 / math.sqrt(row.k))


def gauss_encode(
    x: Tensor,
    add: Tensor | None,
    wire: Tensor,
    table: Tensor,
    status: Tensor,
    decay: float,
    add_scale: float,
    gain: Tensor,
    quantiles: Tensor,
    step: int,
) -> None:
    """``wire <- gain * R y``, ``x <- y - R^T wire``."""
    check_k("gauss_encode", table, decoding=False)
    check_encode_rows("gauss_encode", x, add, wire, table, status, section)
    for r, row in enumerate(rows(table)):
        y = _input(x, add, wire, row, status, decay, add_scale)
        if y is None:
            continue
        group = max(1, _ENTRIES // row.numel)
        parts: list[Tensor] = []
        for first in range(0, row.k, group):
            terms = _matrix(row, first, min(group, row.k - first), quantiles, step) * y
            parts.append(lane_sum(torch.nn.functional.pad(terms, (0, -row.numel % 16))))
        factor = torch.tensor(1.0 / math.sqrt(row.k), dtype=torch.float32, device=y.device) * gain[r]
        sums = torch.cat(parts) * factor
        put(wire, row.wire, sums)
        x[row.x : row.x + row.numel] = y - _gauss_values(sums, row, quantiles, step)


def gauss_decode(
    wires: Tensor,
    table: Tensor,
    skip: Tensor,
    out: Tensor,
    scale: float,
    accumulate: bool,
    quantiles: Tensor,
    step: int,
) -> None:
    """``out (+)= scale * R^T (sum of the messages)``."""
    check_k("gauss_decode", table, decoding=True)

    def values(message: Tensor, row: Row) -> Tensor:
        return _gauss_values(take(message, row.wire, row.k, torch.float32), row, quantiles, step)

    decode("gauss_decode", wires, table, skip, out, scale, accumulate, section, values)
