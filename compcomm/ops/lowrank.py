"""The products, Gram-Schmidt and reconstruction of PowerSGD; formulas and tables are in ``reference/lowrank.py``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import checks, native
from .native import FLOAT, INT, LONG, POINTER
from .reference.lowrank import backproject, orthonormal, project, reconstruct, refresh
from .schema import register


def _table(op: str, table: Tensor) -> None:
    if table.dtype is not torch.int64 or table.dim() != 2 or table.shape[1] != 8 or not table.is_contiguous():
        raise ValueError(
            f"compcomm.{op}: table is {table.dtype} of shape {tuple(table.shape)}; it must be contiguous torch.int64 "
            "of eight columns"
        )


def _floats(op: str, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        checks.flat(op, name, tensor, checks.F32)


def _check_product(op: str, *args: Any) -> None:
    _floats(op, residual=args[0], p=args[2], q=args[3])
    checks.flat(op, "gradient", args[1], *checks.FLOATS)
    _table(op, args[4])
    checks.flat(op, "status", args[5], checks.U8)


def _check_reconstruct(op: str, *args: Any) -> None:
    _floats(op, residual=args[0], p=args[2], q=args[3], p_sent=args[4], q_sent=args[5])
    checks.flat(op, "out", args[1], *checks.FLOATS)
    for name, one, other in (("p_sent", args[4], args[2]), ("q_sent", args[5], args[3])):
        if one.numel() != other.numel():
            raise ValueError(f"compcomm.{op}: {name} has {one.numel()} elements where {other.numel()} are due")
    _table(op, args[6])
    checks.flat(op, "skip", args[7], checks.U8)


def _check_factor(op: str, *args: Any) -> None:
    _floats(op, factor=args[0])
    _table(op, args[1])
    if op == "lowrank_refresh":
        checks.flat(op, "quantiles", args[2], checks.F32)
        if args[2].numel() != 1 << 16:
            raise ValueError(f"compcomm.{op}: quantiles has {args[2].numel()} elements; it needs one per 16-bit number")


def _span(tensor: Tensor | None) -> tuple[int | None, int]:
    return (None, 0) if tensor is None else (tensor.data_ptr(), tensor.numel())


def _product(name: str) -> Callable[..., int] | None:
    f = native.function(name, *[POINTER, LONG] * 6, FLOAT)
    if f is None:
        return None

    def call(
        residual: Tensor, gradient: Tensor | None, p: Tensor, q: Tensor, table: Tensor, status: Tensor, scale: float
    ) -> int:
        matrices = (table.data_ptr(), table.shape[0])
        return f(*_span(residual), *matrices, *_span(gradient), *_span(p), *_span(q), *_span(status), scale)

    return call


def _reconstruct() -> Callable[..., int] | None:
    tail = (POINTER, POINTER, POINTER, LONG, FLOAT, INT, FLOAT)
    f = native.function("cc_lowrank_reconstruct", *[POINTER, LONG] * 5, *tail)
    if f is None:
        return None

    def call(
        residual: Tensor, out: Tensor | None, p: Tensor, q: Tensor, p_sent: Tensor, q_sent: Tensor, table: Tensor,
        skip: Tensor, scale: float, accumulate: bool, sign: float,
    ) -> int:  # fmt: skip
        head = (*_span(residual), table.data_ptr(), table.shape[0], *_span(out), *_span(p), *_span(q))
        return f(*head, p_sent.data_ptr(), q_sent.data_ptr(), *_span(skip), scale, accumulate, sign)

    return call


def _orthonormal() -> Callable[..., int] | None:
    f = native.function("cc_lowrank_orthonormal", *[POINTER, LONG] * 2)
    if f is None:
        return None

    def call(factor: Tensor, table: Tensor) -> int:
        return f(*_span(factor), table.data_ptr(), table.shape[0])

    return call


def _refresh() -> Callable[..., int] | None:
    f = native.function("cc_lowrank_refresh", *[POINTER, LONG] * 2, POINTER, LONG)
    if f is None:
        return None

    def call(factor: Tensor, table: Tensor, quantiles: Tensor, step: int) -> int:
        return f(*_span(factor), table.data_ptr(), table.shape[0], quantiles.data_ptr(), step)

    return call


register(
    "lowrank_project(Tensor(a!) residual, Tensor? gradient, Tensor(b!) p, Tensor q, Tensor table, Tensor(c!) status, "
    "float scale) -> ()",
    project,
    _product("cc_lowrank_project"),
    _check_product,
)
register(
    "lowrank_backproject(Tensor(a!) residual, Tensor? gradient, Tensor p, Tensor(b!) q, Tensor table, "
    "Tensor(c!) status, float scale) -> ()",
    backproject,
    _product("cc_lowrank_backproject"),
    _check_product,
)
register(
    "lowrank_reconstruct(Tensor(a!) residual, Tensor(b!)? out, Tensor p, Tensor q, Tensor p_sent, Tensor q_sent, "
    "Tensor table, Tensor skip, float scale, bool accumulate, float sign) -> ()",
    reconstruct,
    _reconstruct(),
    _check_reconstruct,
)
register(
    "lowrank_orthonormal(Tensor(a!) factor, Tensor table) -> ()",
    orthonormal,
    _orthonormal(),
    _check_factor,
)
register(
    "lowrank_refresh(Tensor(a!) factor, Tensor table, Tensor quantiles, int step) -> ()",
    refresh,
    _refresh(),
    _check_factor,
)
