"""The ops that permute a bucket's blocks, for owners' shares that look alike, and bring selections back.

Their meaning: ``reference/interleave.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from . import checks, native
from .dense import INPUT
from .native import FLOAT, LONG, POINTER
from .reference.interleave import permute_blocks, topk_scatter
from .schema import register


def _check_permute_blocks(op: str, *args: Any) -> None:
    checks.encode(op, *args[:5])
    checks.blocks(op, args[7])


def _check_topk_scatter(
    op: str, wires: Tensor, table: Tensor, pieces: Tensor, out: Tensor, scale: float, grain: int
) -> None:
    checks.decode(op, wires, table, checks.NOTHING, out)
    if (
        pieces.dtype is not checks.I64
        or pieces.shape != (len(table), 3)
        or not pieces.is_contiguous()
        or len(wires) != 1
    ):
        raise ValueError(
            f"compcomm.{op}: pieces is {pieces.dtype} of shape {tuple(pieces.shape)} for {len(table)} rows, "
            f"{len(wires)} messages; it must be contiguous torch.int64 [rows, 3], for one message"
        )
    if grain < 1 or grain & (grain - 1):
        raise ValueError(f"compcomm.{op}: grain={grain} elements per block is not a power of two")


def _topk_scatter() -> Callable[..., int] | None:
    f = native.function("cc_topk_scatter", *[POINTER, LONG] * 2, POINTER, POINTER, LONG, FLOAT, LONG)
    if f is None:
        return None

    def call(wires: Tensor, table: Tensor, pieces: Tensor, out: Tensor, scale: float, grain: int) -> int:
        wire = (wires.data_ptr(), wires.shape[1])
        return f(*wire, table.data_ptr(), len(table), pieces.data_ptr(), *native.spans(out), scale, grain)

    return call


register(
    f"permute_blocks({INPUT.replace('(a!) x', '(a!)? x')}, int grain) -> ()",
    permute_blocks,
    native.encodes("permute_blocks", LONG),
    _check_permute_blocks,
)
register(
    "topk_scatter(Tensor wires, Tensor table, Tensor pieces, Tensor(a!) out, float scale, int grain) -> ()",
    topk_scatter,
    _topk_scatter(),
    _check_topk_scatter,
)
