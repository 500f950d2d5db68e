"""The ops that measure magnitudes for a fitted threshold; formulas are in ``reference/magnitude_stats.py``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import checks, native
from .dense import INPUT
from .native import INT, LONG, POINTER
from .reference.magnitude_stats import magnitude_stats, tail_stats
from .schema import register


def _stats(op: str, stats: Tensor, rows: int) -> None:
    if stats.dtype is not torch.float64 or stats.shape != (rows, 5) or not stats.is_contiguous():
        raise ValueError(
            f"compcomm.{op}: stats is {stats.dtype} of shape {tuple(stats.shape)}; it must be contiguous torch.float64 "
            f"[{rows}, 5], one line per table row: count, sum, squares, smallest, logs"
        )


def _check_magnitude_stats(op: str, *args: Any) -> None:
    checks.encode(op, *args[:5])
    _stats(op, args[7], args[3].shape[0])


def _check_tail_stats(
    op: str, x: Tensor, list: Tensor, table: Tensor, threshold: Tensor, stats: Tensor, *_: Any
) -> None:
    checks.encode(op, x, list, checks.NOTHING, table, checks.NOTHING)
    checks.flat(op, "threshold", threshold, checks.F32, numel=table.shape[0])
    _stats(op, stats, table.shape[0])


def _tail_stats() -> Callable[..., int] | None:
    f = native.function("cc_tail_stats", POINTER, LONG, POINTER, LONG, POINTER, LONG, POINTER, POINTER, INT, INT)
    if f is None:
        return None

    def call(
        x: Tensor, list: Tensor, table: Tensor, threshold: Tensor, stats: Tensor, first: bool, squares: bool
    ) -> int:
        return f(
            *(x.data_ptr(), x.numel(), list.data_ptr(), list.numel(), table.data_ptr(), table.shape[0]),
            *(threshold.data_ptr(), stats.data_ptr(), first, squares),
        )

    return call


register(
    f"magnitude_stats({INPUT}, Tensor(d!) stats, bool squares, bool logs) -> ()",
    magnitude_stats,
    native.encodes("magnitude_stats", INT, INT, tensors=1),
    _check_magnitude_stats,
)
register(
    "tail_stats(Tensor x, Tensor(a!) list, Tensor table, Tensor threshold, Tensor(b!) stats, bool first, bool squares) "
    "-> ()",
    tail_stats,
    _tail_stats(),
    _check_tail_stats,
)
