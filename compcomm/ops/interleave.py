"""The op that deals a bucket's blocks out to owners; see ``reference/interleave.py``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from . import checks, native
from .native import FLOAT, INT, LONG, POINTER
from .reference.interleave import interleave
from .schema import register


def _check(op: str, source: Tensor, table: Tensor, target: Tensor, grain: int, *_: object) -> None:
    checks.flat(op, "source", source, checks.F32)
    checks.flat(op, "target", target, checks.F32)
    if table.dtype is not checks.I64 or table.dim() != 2 or table.shape[1] != 4 or not table.is_contiguous():
        raise ValueError(
            f"compcomm.{op}: table is {table.dtype} of shape {tuple(table.shape)}; it must be contiguous torch.int64 "
            "[rows, 4]: natural, dealt, numel, ways"
        )
    if grain < 1:
        raise ValueError(f"compcomm.{op}: grain={grain} elements per block; at least 1")


def _interleave() -> Callable[..., int] | None:
    f = native.function("cc_interleave", *[POINTER, LONG] * 3, LONG, FLOAT, INT, INT)
    if f is None:
        return None

    def call(source: Tensor, table: Tensor, target: Tensor, *rest: Any) -> int:
        return f(*native.spans(source, target), table.data_ptr(), len(table), *rest)

    return call


register(
    "interleave(Tensor source, Tensor table, Tensor(a!) target, int grain, float scale, bool accumulate, bool inverse) "
    "-> ()",
    interleave,
    _interleave(),
    _check,
)
