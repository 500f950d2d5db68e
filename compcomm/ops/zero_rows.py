"""The ops on rows of zeros: ``zero_rows_mark`` and ``zero_rows_clear``. Their meaning: ``reference/zero_rows.py``."""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks, native
from .native import LONG, POINTER
from .reference.zero_rows import zero_rows_clear, zero_rows_mark
from .schema import register


def _check_mark(op: str, x: Tensor | None, add: Tensor | None, bits: Tensor, table: Tensor) -> None:
    checks.flat(op, "x", x, *checks.FLOATS, torch.float64)
    checks.flat(op, "add", add, *checks.FLOATS, torch.float64)
    checks.flat(op, "bits", bits, checks.U8)
    checks.table_of(op, table)


def _check_clear(op: str, to: Tensor, bits: Tensor, table: Tensor) -> None:
    checks.flat(op, "to", to, *checks.FLOATS, torch.float64)
    checks.flat(op, "bits", bits, checks.U8)
    checks.table_of(op, table)


_mark = native.function("cc_zero_rows_mark", *(POINTER, LONG) * 4)
_clear = native.function("cc_zero_rows_clear", *(POINTER, LONG) * 3)


def _native_mark(x: Tensor | None, add: Tensor | None, bits: Tensor, table: Tensor) -> int:
    assert _mark is not None
    f64 = torch.float64
    if (x is not None and x.dtype is f64) or (add is not None and add.dtype is f64):
        zero_rows_mark(x, add, bits, table)
        return 0
    nothing = (None, 0)
    first = nothing if x is None else (x.data_ptr(), x.numel())
    second = nothing if add is None else (add.data_ptr(), add.numel())
    return _mark(*first, *second, bits.data_ptr(), bits.numel(), table.data_ptr(), table.shape[0])


def _native_clear(to: Tensor, bits: Tensor, table: Tensor) -> int:
    assert _clear is not None
    if to.dtype == torch.float64:
        zero_rows_clear(to, bits, table)
        return 0
    return _clear(to.data_ptr(), to.numel(), bits.data_ptr(), bits.numel(), table.data_ptr(), table.shape[0])


register(
    "zero_rows_mark(Tensor? x, Tensor? add, Tensor(a!) bits, Tensor table) -> ()",
    zero_rows_mark,
    _native_mark if _mark is not None else None,
    _check_mark,
)
register(
    "zero_rows_clear(Tensor(a!) to, Tensor bits, Tensor table) -> ()",
    zero_rows_clear,
    _native_clear if _clear is not None else None,
    _check_clear,
)
