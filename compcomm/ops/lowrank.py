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


def _check_product(
    op: str, residual: Tensor, gradient: Tensor | None, p: Tensor, q: Tensor, table: Tensor, status: Tensor, _: float
) -> None:
    f32 = checks.F32
    checks.flats(op, ("residual", residual, f32), ("p", p, f32), ("q", q, f32), ("status", status, checks.U8))
    if gradient is not None:
        checks.flat(op, "gradient", gradient, *checks.FLOATS)
    _table(op, table)


def _check_reconstruct(
    op: str, residual: Tensor, out: Tensor | None, p: Tensor, q: Tensor, p_sent: Tensor, q_sent: Tensor, table: Tensor,
    skip: Tensor, *_: float,
) -> None:  # fmt: skip
    f32 = checks.F32
    checks.flats(
        op, ("residual", residual, f32), ("p", p, f32), ("q", q, f32), ("p_sent", p_sent, f32),
        ("q_sent", q_sent, f32), ("skip", skip, checks.U8),
    )  # fmt: skip
    if out is not None:
        checks.flat(op, "out", out, *checks.FLOATS)
    for name, one, other in (("p_sent", p_sent, p), ("q_sent", q_sent, q)):
        if one.numel() != other.numel():
            raise ValueError(f"compcomm.{op}: {name} has {one.numel()} elements where {other.numel()} are due")
    _table(op, table)


def _check_factor(op: str, *args: Any) -> None:
    checks.flat(op, "factor", args[0], checks.F32)
    _table(op, args[1])
    if op == "lowrank_refresh":
        checks.flat(op, "quantiles", args[2], checks.F32)
        if args[2].numel() != 1 << 16:
            raise ValueError(f"compcomm.{op}: quantiles has {args[2].numel()} elements; it needs one per 16-bit number")


def _product(name: str) -> Callable[..., int] | None:
    f = native.function(name, *[POINTER, LONG] * 6, FLOAT)
    if f is None:
        return None

    def call(
        residual: Tensor, gradient: Tensor | None, p: Tensor, q: Tensor, table: Tensor, status: Tensor, scale: float
    ) -> int:
        return f(
            residual.data_ptr(),
            residual.numel(),
            table.data_ptr(),
            table.shape[0],
            None if gradient is None else gradient.data_ptr(),
            0 if gradient is None else gradient.numel(),
            *native.spans(p, q, status),
            scale,
        )

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
        return f(
            residual.data_ptr(),
            residual.numel(),
            table.data_ptr(),
            table.shape[0],
            None if out is None else out.data_ptr(),
            0 if out is None else out.numel(),
            *native.spans(p, q),
            p_sent.data_ptr(),
            q_sent.data_ptr(),
            skip.data_ptr(),
            skip.numel(),
            scale,
            accumulate,
            sign,
        )

    return call


def _orthonormal() -> Callable[..., int] | None:
    f = native.function("cc_lowrank_orthonormal", *[POINTER, LONG] * 2)
    if f is None:
        return None

    def call(factor: Tensor, table: Tensor) -> int:
        return f(factor.data_ptr(), factor.numel(), table.data_ptr(), table.shape[0])

    return call


def _refresh() -> Callable[..., int] | None:
    f = native.function("cc_lowrank_refresh", *[POINTER, LONG] * 2, POINTER, LONG)
    if f is None:
        return None

    def call(factor: Tensor, table: Tensor, quantiles: Tensor, step: int) -> int:
        return f(factor.data_ptr(), factor.numel(), table.data_ptr(), table.shape[0], quantiles.data_ptr(), step)

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
