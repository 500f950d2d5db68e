"""The ops that deal a bucket's blocks out to owners, and bring selections back; see ``reference/interleave.py``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from . import checks, native
from .dense import INPUT
from .native import FLOAT, LONG, POINTER
from .reference.interleave import deal, topk_undeal
from .schema import register


def _check_deal(op: str, *args: Any) -> None:
    checks.encode(op, *args[:5])
    checks.blocks(op, args[7])


def _check_undeal(op: str, wires: Tensor, table: Tensor, deals: Tensor, out: Tensor, scale: float, grain: int) -> None:
    checks.decode(op, wires, table, checks.NOTHING, out)
    if deals.dtype is not checks.I64 or deals.shape != (len(table), 3) or not deals.is_contiguous() or len(wires) != 1:
        raise ValueError(
            f"compcomm.{op}: deals is {deals.dtype} of shape {tuple(deals.shape)} for {len(table)} rows, {len(wires)} "
            "messages; it must be contiguous torch.int64 [rows, 3], for one message"
        )
    if grain < 1 or grain & (grain - 1):
        raise ValueError(f"compcomm.{op}: grain={grain} elements per block is not a power of two")


def _undeal() -> Callable[..., int] | None:
    f = native.function("cc_topk_undeal", *[POINTER, LONG] * 2, POINTER, POINTER, LONG, FLOAT, LONG)
    if f is None:
        return None

    def call(wires: Tensor, table: Tensor, deals: Tensor, out: Tensor, scale: float, grain: int) -> int:
        wire = (wires.data_ptr(), wires.shape[1])
        return f(*wire, table.data_ptr(), len(table), deals.data_ptr(), *native.spans(out), scale, grain)

    return call


register(
    f"deal({INPUT.replace('(a!) x', '(a!)? x')}, int grain) -> ()", deal, native.encodes("deal", LONG), _check_deal
)
register(
    "topk_undeal(Tensor wires, Tensor table, Tensor deals, Tensor(a!) out, float scale, int grain) -> ()",
    topk_undeal,
    _undeal(),
    _check_undeal,
)
