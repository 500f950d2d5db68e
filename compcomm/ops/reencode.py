"""The owner's step of two-phase as one op: decode what came, add the residual, encode again.

On a GPU with CUDA kernels the mean between the two never reaches memory; elsewhere it is the format's decoder and its
encoder (``reference/reencode.py``).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import checks
from .reference.reencode import check_rows, qsgd_reencode, sign_reencode
from .schema import register

INPUT = (
    "Tensor(a!)? x, Tensor wires, Tensor table_in, Tensor skip, Tensor(b!) wire, Tensor table_out, Tensor(c!) status, "
    "float scale, float add_scale"
)


def _check(op: str, x: Tensor | None, wires: Tensor, table_in: Tensor, skip: Tensor, wire: Tensor, *rest: Any) -> None:
    table_out, status = rest[0], rest[1]
    checks.encode(op, x, None, wire, table_out, status)
    checks.decode(op, wires, table_in, skip, checks.NO_FLOATS)
    check_rows(op, table_in, table_out)


def _check_sign(op: str, *args: Any) -> None:
    _check(op, *args)
    if not 0 <= args[9] <= 2:
        raise ValueError(f"compcomm.{op}: kind={args[9]}; scales are 0 (mean), 1 (root mean square), 2 (dot)")
    checks.blocks(op, args[10])


def _check_qsgd(op: str, *args: Any) -> None:
    _check(op, *args)
    checks.flat(op, "gain", args[9], checks.F32, numel=args[5].shape[0])
    checks.qsgd(op, args[10], args[11], args[14])


register(f"sign_reencode({INPUT}, int kind, int block) -> ()", sign_reencode, check=_check_sign)
register(
    f"qsgd_reencode({INPUT}, Tensor gain, int bits, int levels, bool norm2, bool stochastic, int block, int step, "
    "int rank) -> ()",
    qsgd_reencode,
    check=_check_qsgd,
)
