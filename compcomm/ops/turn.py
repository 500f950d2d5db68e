"""The op that transposes matrices between buffers: ``turn``. Its meaning: ``reference/turn.py``."""

from __future__ import annotations

from torch import Tensor

from . import checks, native
from .native import LONG, POINTER
from .reference.turn import turn
from .schema import register


def _check(op: str, to: Tensor, source: Tensor, table: Tensor) -> None:
    checks.flat(op, "to", to, checks.F32)
    checks.flat(op, "source", source, checks.F32)
    if table.dtype is not checks.I64 or table.dim() != 2 or table.shape[1] != 5 or not table.is_contiguous():
        raise ValueError(
            f"compcomm.{op}: table is {table.dtype} of shape {tuple(table.shape)}; it must be contiguous torch.int64 "
            "[lines, 5]: to, from, count, rows, columns"
        )


_turn = native.function("cc_turn", *(POINTER, LONG) * 3)


def _native(to: Tensor, source: Tensor, table: Tensor) -> int:
    assert _turn is not None
    return _turn(to.data_ptr(), to.numel(), source.data_ptr(), source.numel(), table.data_ptr(), table.shape[0])


register("turn(Tensor(a!) to, Tensor source, Tensor table) -> ()", turn, _native if _turn is not None else None, _check)
