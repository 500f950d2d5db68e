"""The ops of MinMax; the formula and the wire are in ``reference/minmax.py``."""

from __future__ import annotations

from typing import Any

from . import checks, native
from .dense import INPUT, OUTPUT
from .native import INT, LONG
from .reference.minmax import minmax_decode, minmax_encode
from .schema import register


def _check(op: str, bits: int, block: int) -> None:
    if not 1 <= bits <= 8:
        raise ValueError(f"compcomm.{op}: bits={bits}; levels have 1 to 8 bits")
    checks.blocks(op, block)


def _check_encode(op: str, *args: Any) -> None:
    checks.with_gain(op, *args[:8])
    _check(op, args[8], args[10])


def _check_decode(op: str, *args: Any) -> None:
    checks.decode(op, *args[:4])
    _check(op, *args[6:8])


register(
    f"minmax_encode({INPUT}, Tensor gain, int bits, bool stochastic, int block, int step, int rank) -> ()",
    minmax_encode,
    native.encodes("minmax_encode", INT, INT, LONG, LONG, LONG, tensors=1),
    _check_encode,
)
register(
    f"minmax_decode({OUTPUT}, int bits, int block) -> ()",
    minmax_decode,
    native.decodes("minmax_decode", INT, LONG),
    _check_decode,
)
