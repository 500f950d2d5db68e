"""The ops of integer all-reduce under a scale that all ranks share: see ``reference/shared_scale.py``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import checks, native
from .dense import INPUT
from .native import FLOAT, INT, LONG, POINTER
from .reference.shared_scale import shared_decode, shared_encode, shared_norms
from .schema import register


def _widths(op: str, width: int, levels: int, block: int) -> None:
    if not 1 <= width <= 31 or not 1 <= levels <= 127:
        raise ValueError(f"compcomm.{op}: width={width}, levels={levels}; widths are 1 to 31 bits, levels 1 to 127")
    checks.blocks(op, block)


def _check_norms(op: str, *args: Any) -> None:
    checks.encode(op, *args[:5])
    _widths(op, 1, args[7], args[9])


def _check_encode(op: str, *args: Any) -> None:
    x, norms, words, table, width, levels, _, block = args[:8]
    checks.encode(op, x, None, words, table, norms)
    _widths(op, width, levels, block)


def _check_decode(op: str, *args: Any) -> None:
    words, norms, table, skip, out = args[:5]
    checks.decode(op, words.unsqueeze(0), table, skip, out)
    checks.flat(op, "norms", norms, checks.U8)
    _widths(op, *args[7:10])


def _encode() -> Callable[..., int] | None:
    f = native.function("cc_shared_encode", *[POINTER, LONG] * 4, INT, INT, INT, LONG, LONG, LONG)
    if f is None:
        return None

    def call(x: Any, norms: Any, words: Any, table: Any, *rest: Any) -> int:
        return f(*native.spans(x, norms, words), table.data_ptr(), len(table), *rest)

    return call


def _decode() -> Callable[..., int] | None:
    f = native.function("cc_shared_decode", *[POINTER, LONG] * 5, FLOAT, INT, INT, INT, LONG, LONG)
    if f is None:
        return None

    def call(words: Any, norms: Any, table: Any, skip: Any, out: Any, *rest: Any) -> int:
        return f(*native.spans(words, norms), table.data_ptr(), len(table), *native.spans(skip, out), *rest)

    return call


register(
    f"shared_norms({INPUT}, int levels, bool norm2, int block) -> ()",
    shared_norms,
    native.encodes("shared_norms", INT, INT, LONG),
    _check_norms,
)
register(
    "shared_encode(Tensor(a!) x, Tensor norms, Tensor(b!) words, Tensor table, int width, int levels, bool stochastic, "
    "int block, int step, int rank) -> ()",
    shared_encode,
    _encode(),
    _check_encode,
)
register(
    "shared_decode(Tensor words, Tensor norms, Tensor table, Tensor skip, Tensor(a!) out, float scale, "
    "bool accumulate, int width, int levels, int block, int world) -> ()",
    shared_decode,
    _decode(),
    _check_decode,
)
