"""The ops on rows that are marked on the device: ``fill_masked`` and ``axpby_masked``."""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks
from .reference.masked import axpby_masked, fill_masked
from .schema import register


def _check(op: str, to: Tensor, table: Tensor, marks: Tensor) -> None:
    checks.flat(op, "to", to, *checks.FLOATS, torch.float64)
    checks.flat(op, "marks", marks, checks.U8)
    if table.dtype is not checks.I64 or table.dim() != 2 or table.shape[1] != 4 or not table.is_contiguous():
        raise ValueError(
            f"compcomm.{op}: table is {table.dtype} of shape {tuple(table.shape)}; it must be contiguous torch.int64 "
            "[rows, 4]: to, from, numel, index"
        )


def _check_fill(op: str, to: Tensor, table: Tensor, marks: Tensor, value: float) -> None:
    _check(op, to, table, marks)


def _check_axpby(op: str, to: Tensor, source: Tensor, table: Tensor, marks: Tensor, alpha: float, beta: float) -> None:
    _check(op, to, table, marks)
    checks.flat(op, "source", source, *checks.FLOATS, torch.float64)


register("fill_masked(Tensor(a!) to, Tensor table, Tensor marks, float value) -> ()", fill_masked, check=_check_fill)
register(
    "axpby_masked(Tensor(a!) to, Tensor source, Tensor table, Tensor marks, float alpha, float beta) -> ()",
    axpby_masked,
    check=_check_axpby,
)
