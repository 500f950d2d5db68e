"""The ops whose payload has a place for every element: dense, cast, qsgd and sign, encode and decode.

Their formulas and wire layouts are in ``reference/``; here each op gets its schema, its checks and its C function.
"""

from __future__ import annotations

from typing import Any

from . import checks, native
from .native import INT, LONG
from .reference.cast import cast_decode, cast_encode
from .reference.dense import dense_decode, dense_encode
from .reference.qsgd import qsgd_decode, qsgd_encode
from .reference.sign import sign_decode, sign_encode
from .schema import register

INPUT = "Tensor(a!) x, Tensor? add, Tensor(b!) wire, Tensor table, Tensor(c!) status, float decay, float add_scale"
OUTPUT = "Tensor wires, Tensor table, Tensor skip, Tensor(a!) out, float scale, bool accumulate"


def _check_qsgd_encode(op: str, *args: Any) -> None:
    checks.with_gain(op, *args[:8])
    checks.qsgd(op, args[8], args[9], args[12])


def _check_qsgd_decode(op: str, *args: Any) -> None:
    checks.decode(op, *args[:4])
    checks.qsgd(op, *args[6:9])


def _check_sign_encode(op: str, *args: Any) -> None:
    checks.encode(op, *args[:5])
    if not 0 <= args[7] <= 2:
        raise ValueError(f"compcomm.{op}: kind={args[7]}; scales are 0 (mean), 1 (root mean square), 2 (dot)")
    checks.blocks(op, args[8])


def _check_sign_decode(op: str, *args: Any) -> None:
    checks.decode(op, *args[:4])
    checks.blocks(op, args[6])


register(
    f"dense_encode({INPUT.replace('(a!) x', '(a!)? x')}) -> ()",
    dense_encode,
    native.encodes("dense_encode"),
    checks.encode,
)
register(f"dense_decode({OUTPUT}) -> ()", dense_decode, native.decodes("dense_decode"), checks.decode)
register(f"cast_encode({INPUT}, bool half) -> ()", cast_encode, native.encodes("cast_encode", INT), checks.encode)
register(f"cast_decode({OUTPUT}, bool half) -> ()", cast_decode, native.decodes("cast_decode", INT), checks.decode)
register(
    f"qsgd_encode({INPUT}, Tensor gain, int bits, int levels, bool norm2, bool stochastic, int block, int step, "
    "int rank) -> ()",
    qsgd_encode,
    native.encodes("qsgd_encode", INT, INT, INT, INT, LONG, LONG, LONG, tensors=1),
    _check_qsgd_encode,
)
register(
    f"qsgd_decode({OUTPUT}, int bits, int levels, int block) -> ()",
    qsgd_decode,
    native.decodes("qsgd_decode", INT, INT, LONG),
    _check_qsgd_decode,
)
register(
    f"sign_encode({INPUT}, int kind, int block) -> ()",
    sign_encode,
    native.encodes("sign_encode", INT, LONG),
    _check_sign_encode,
)
register(
    f"sign_decode({OUTPUT}, int block) -> ()", sign_decode, native.decodes("sign_decode", LONG), _check_sign_decode
)
