"""Ops of schemes' memory: ``axpby``, ``norms``, ``nonzero_segments``, ``add_correction``.

Their meaning: ``reference/segment_ops.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks, native
from .native import FLOAT, LONG, POINTER
from .reference.segment_ops import add_correction, axpby, nonzero_segments, norms, spans
from .schema import register


def _table(op: str, table: Tensor) -> None:
    if table.dtype is not checks.I64 or table.dim() != 2 or table.shape[1] != 4 or not table.is_contiguous():
        raise ValueError(
            f"compcomm.{op}: table is {table.dtype} of shape {tuple(table.shape)}; it must be contiguous torch.int64 "
            "[rows, 4]: to, from, numel, index"
        )


_ALIKE = {dtype: (dtype, *(other for other in checks.FLOATS if other is not dtype)) for dtype in checks.FLOATS}
"""What goes with a tensor of this type: half precision is computed in fp32, so those three mix; others do not."""


def _check_axpby(
    op: str, to: Tensor, source: Tensor, table: Tensor, beta: Tensor, status: Tensor, alpha: float
) -> None:
    alike = _ALIKE.get(source.dtype, (source.dtype,))
    checks.flat(op, "to", to, *alike)
    checks.flat(op, "source", source, source.dtype)
    checks.flat(op, "status", status, checks.U8)
    _table(op, table)
    checks.flat(op, "beta", beta, *alike, numel=table.shape[0])


def _check_nonzero_segments(op: str, source: Tensor, table: Tensor, status: Tensor) -> None:
    checks.flat(op, "source", source, source.dtype)
    checks.flat(op, "status", status, checks.U8)
    _table(op, table)


def _check_norms(op: str, source: Tensor, table: Tensor, out: Tensor) -> None:
    checks.flat(op, "source", source, source.dtype)
    _table(op, table)
    checks.flat(op, "out", out, torch.float64, numel=table.shape[0])


def _check_add_correction(
    op: str, x: Tensor, error: Tensor, estimate: Tensor, table: Tensor, status: Tensor, eta: float, scale: float
) -> None:
    alike = _ALIKE.get(error.dtype, (error.dtype,))
    checks.flat(op, "x", x, *alike)
    checks.flat(op, "error", error, error.dtype)
    checks.flat(op, "estimate", estimate, *alike, numel=error.numel())
    checks.flat(op, "status", status, checks.U8)
    _table(op, table)


_axpby = native.function("cc_axpby", POINTER, LONG, POINTER, LONG, POINTER, LONG, POINTER, POINTER, LONG, FLOAT)
_norms = native.function("cc_norms", POINTER, LONG, POINTER, LONG, POINTER, LONG)
_nonzero_segments = native.function("cc_nonzero_segments", POINTER, LONG, POINTER, LONG, POINTER, LONG)
_add_correction = native.function(
    "cc_add_correction", POINTER, LONG, POINTER, POINTER, LONG, POINTER, LONG, POINTER, LONG, FLOAT, FLOAT
)


def _fast_axpby(to: Tensor, source: Tensor, table: Tensor, beta: Tensor, status: Tensor, alpha: float) -> int:
    if source.dtype is not checks.F32:
        axpby(to, source, table, beta, status, alpha)
        return 0
    assert _axpby is not None
    rows = (table.data_ptr(), table.shape[0])
    return _axpby(*native.spans(to, source), *rows, beta.data_ptr(), *native.spans(status), alpha)


def _fast_norms(source: Tensor, table: Tensor, out: Tensor) -> int:
    if source.dtype is not checks.F32:
        norms(source, table, out)
        return 0
    assert _norms is not None
    return _norms(*native.spans(source), table.data_ptr(), table.shape[0], *native.spans(out))


def _fast_nonzero_segments(source: Tensor, table: Tensor, status: Tensor) -> int:
    if source.dtype is not checks.F32:
        x, seen = source.numpy(), status.numpy()  # several times faster than torch on a few elements
        for row in spans("nonzero_segments", None, source, table, status):
            seen[1 + row.entry] |= x[row.start : row.start + row.numel].any()
        return 0
    assert _nonzero_segments is not None
    return _nonzero_segments(*native.spans(source), table.data_ptr(), table.shape[0], *native.spans(status))


def _fast_add_correction(
    x: Tensor, error: Tensor, estimate: Tensor, table: Tensor, status: Tensor, eta: float, scale: float
) -> int:
    if x.dtype is not checks.F32:
        add_correction(x, error, estimate, table, status, eta, scale)
        return 0
    assert _add_correction is not None
    where = (error.data_ptr(), estimate.data_ptr(), error.numel(), table.data_ptr(), table.shape[0])
    return _add_correction(*native.spans(x), *where, *native.spans(status), eta, scale)


register(
    "axpby(Tensor(a!) to, Tensor source, Tensor table, Tensor beta, Tensor(b!) status, float alpha) -> ()",
    axpby,
    None if _axpby is None else _fast_axpby,
    _check_axpby,
)
register(
    "norms(Tensor source, Tensor table, Tensor(a!) out) -> ()",
    norms,
    None if _norms is None else _fast_norms,
    _check_norms,
)
register(
    "nonzero_segments(Tensor source, Tensor table, Tensor(a!) status) -> ()",
    nonzero_segments,
    None if _nonzero_segments is None else _fast_nonzero_segments,
    _check_nonzero_segments,
)
register(
    "add_correction(Tensor(a!) x, Tensor error, Tensor estimate, Tensor table, Tensor(b!) status, float eta, "
    "float scale) -> ()",
    add_correction,
    None if _add_correction is None else _fast_add_correction,
    _check_add_correction,
)
