"""The ops that carry sections of variable length: squeeze them together before sending, spread them on arrival.

The layout of messages and bodies is described in ``reference/variable_length.py``; here each op gets its schema, its
checks and its C function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from . import checks, native
from .native import LONG, POINTER
from .reference.variable_length import compact, scatter
from .schema import register


def _check_compact(op: str, wire: Tensor, table: Tensor, spans: Tensor, out: Tensor, sizes: Tensor) -> None:
    checks.flat(op, "wire", wire, checks.U8)
    checks.flat(op, "out", out, checks.U8)
    _check_numbers(op, "table", table, 8)
    _check_numbers(op, "spans", spans, 4)
    checks.flat(op, "sizes", sizes, checks.I64)
    if sizes.numel() != len(spans):
        raise ValueError(f"compcomm.{op}: sizes has {sizes.numel()} elements, but needs {len(spans)}: one per message")


def _check_scatter(op: str, bodies: Tensor, places: Tensor, table: Tensor, spans: Tensor, wires: Tensor) -> None:
    checks.flat(op, "bodies", bodies, checks.U8)
    checks.flat(op, "wires", wires, checks.U8)
    _check_numbers(op, "places", places, 2)
    _check_numbers(op, "table", table, 8)
    _check_numbers(op, "spans", spans, 4)
    if len(places) != len(spans):
        raise ValueError(f"compcomm.{op}: places has {len(places)} rows, but needs {len(spans)}: one per message")


def _check_numbers(op: str, name: str, tensor: Tensor, columns: int) -> None:
    if tensor.dtype is not checks.I64 or tensor.dim() != 2 or tensor.shape[1] != columns or not tensor.is_contiguous():
        raise ValueError(
            f"compcomm.{op}: {name} is {tensor.dtype} of shape {tuple(tensor.shape)}; it must be contiguous "
            f"torch.int64 [rows, {columns}]"
        )


def _compact() -> Callable[..., int] | None:
    f = native.function("cc_compact", POINTER, LONG, POINTER, LONG, POINTER, LONG, POINTER, LONG, POINTER)
    return None if f is None else lambda *args: f(*_ends(*args[:4]), args[4].data_ptr())


def _scatter() -> Callable[..., int] | None:
    f = native.function("cc_scatter", POINTER, LONG, POINTER, POINTER, LONG, POINTER, LONG, POINTER, LONG)

    def call(bodies: Tensor, places: Tensor, *rest: Tensor) -> int:
        assert f is not None
        return f(bodies.data_ptr(), bodies.numel(), places.data_ptr(), *_ends(*rest))

    return None if f is None else call


def _ends(*tensors: Tensor) -> list[Any]:
    """Address and length (bytes of a flat tensor, rows of a table) of each."""
    return [value for t in tensors for value in (t.data_ptr(), t.shape[0])]


register(
    "compact(Tensor wire, Tensor table, Tensor spans, Tensor(a!) out, Tensor(b!) sizes) -> ()",
    compact,
    _compact(),
    _check_compact,
)
register(
    "scatter(Tensor bodies, Tensor places, Tensor table, Tensor spans, Tensor(a!) wires) -> ()",
    scatter,
    _scatter(),
    _check_scatter,
)
