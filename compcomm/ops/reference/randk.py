"""Rand-k: k random elements of each row, the same on all ranks, so that no index travels.

Section of a row: ``k`` fp32 values; 32 bits per kept element. Element ``m`` of the section belongs to index
``permutation(m)``, a keyed permutation of ``[0, n)``: drawn without replacement, with no table, no sort and no other
index. The rank is not in the key, so payloads may be summed before decoding.

With ``gain = n/k`` the compressor is unbiased with omega = n/k - 1; with ``gain = 1`` it is a contraction with
delta = k/n (Stich, Cordonnier, Jaggi 2018, arXiv:1809.07599).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .philox import philox
from .rows import Row, check_decode_rows, check_encode_rows, flag, load, put, rows, take

_WORD = 0xFFFFFFFF
_STREAM = 1  # Philox counters of stream 0 are dithers


def section(row: Row) -> int:
    """Bytes of a row."""
    return 4 * row.k


def _check_k(op: str, table: Tensor, *, decoding: bool) -> None:
    for r, row in enumerate(rows(table)):
        if not (decoding and row.x == -1) and not 0 <= row.k <= max(row.numel, 0):
            raise ValueError(
                f"compcomm.{op}: table row {r}: k (column 6) is {row.k}, but must lie in 0..numel = {row.numel}"
            )


def _mix(h: Tensor) -> Tensor:
    """The 32-bit finaliser of MurmurHash3 (Appleby): a bijection in which every input bit moves every output bit."""
    h = h ^ (h >> 16)
    h = (h * 0x85EBCA6B) & _WORD
    h = h ^ (h >> 13)
    h = (h * 0xC2B2AE35) & _WORD
    return h ^ (h >> 16)


def _round_keys(key: int, offset: int, step: int) -> list[int]:
    """Six words: Philox counters (0, step, offset, 1) and (1, step, offset, 1)."""
    words = torch.stack(philox(torch.arange(2, dtype=torch.int64), step, offset, _STREAM, key), dim=1)
    return [int(word) for word in words.flatten()[:6]]


def randk_indices(key: int, numel: int, k: int, offset: int, step: int, device: torch.device | None = None) -> Tensor:
    """``permutation(0), ..., permutation(k - 1)`` as int64.

    A Feistel network of six rounds (Luby, Rackoff 1988) permutes ``[0, 4^h)``, the smallest power of four that holds
    ``numel``; a value outside ``[0, numel)`` is fed in again until it falls inside (Black, Rogaway 2002), which happens
    within four steps on average. What is left is a permutation of ``[0, numel)``. ``h`` is 4 at least: on 16 values six
    rounds are not fair (some pairs are 15 % likelier than others), on 256 the tests find no difference.

    >>> sorted(randk_indices(key=7, numel=5, k=5, offset=0, step=0).tolist())
    [0, 1, 2, 3, 4]
    """
    if not 0 <= k <= numel:
        raise ValueError(f"randk_indices(numel={numel}, k={k}): k must lie in 0..numel")
    half = max(4, (max(numel - 1, 0).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    keys = _round_keys(key, offset, step)

    def network(values: Tensor) -> Tensor:
        left, right = values >> half, values & mask
        for word in keys:
            left, right = right, left ^ (_mix(right ^ word) & mask)
        return left << half | right

    values = torch.arange(k, dtype=torch.int64, device=device)
    # Where it is small, the whole permutation is computed once: walking is then a matter of looking up.
    table = network(torch.arange(1 << 2 * half, dtype=torch.int64, device=device)) if half <= 6 else None
    outside = torch.arange(k, dtype=torch.int64, device=device)
    while len(outside):
        walked = network(values[outside]) if table is None else table[values[outside]]
        values[outside] = walked
        outside = outside[walked >= numel]
    return values


def randk_encode(
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
    """``wire[m] = gain * y[i_m]`` of ``y = decay*x + add_scale*add``; ``x <- y``, less what was sent.

    A product that overflows fp32 is sent as zero and sets ``status[0]``.
    """
    _check_k("randk_encode", table, decoding=False)
    check_encode_rows("randk_encode", x, add, wire, table, status, section)
    for r, row in enumerate(rows(table)):
        y = load(x, add, row, status, decay, add_scale)
        at = randk_indices(row.key, row.numel, row.k, row.offset, step, x.device)
        value = y[at] * gain[r]
        finite = torch.isfinite(value)
        flag(status, 0, ~finite)
        value = torch.where(finite, value, 0.0)
        put(wire, row.wire, value)
        y[at] = y[at] - value
        x[row.x : row.x + row.numel] = y


def randk_decode(
    wires: Tensor, table: Tensor, skip: Tensor, out: Tensor, scale: float, accumulate: bool, step: int
) -> None:
    """``out[i_m] = out[i_m] + v*scale`` for each message in order, on rows that begin at zero unless ``accumulate``."""
    _check_k("randk_decode", table, decoding=True)
    check_decode_rows("randk_decode", wires, table, skip, out, section)
    skipped = [int(entry) for entry in skip.cpu()]
    for row in rows(table):
        if row.x == -1:
            continue
        target = out[row.x : row.x + row.numel]
        if not accumulate:
            target.zero_()
        if skipped[row.entry]:
            continue
        at = randk_indices(row.key, row.numel, row.k, row.offset, step, out.device)
        for message in wires:
            target[at] = target[at] + take(message, row.wire, row.k, torch.float32) * scale
