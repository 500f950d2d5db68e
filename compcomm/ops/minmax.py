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
    checks.encode(op, *args[:5])
    gain, bits, block = args[7], args[8], args[10]
    checks.flat(op, "gain", gain, checks.F32, numel=args[3].shape[0])
    _check(op, bits, block)


def _check_decode(op: str, *args: Any) -> None:
    checks.decode(op, *args[:4])
    _check(op, *args[6:8])


register(
    f"minmax_encode({INPUT}, Tensor gain, int bits, bool stochastic, int block, int step, int rank) -> ()",
    minmax_encode,
    native.encodes_with_gain("minmax_encode", INT, INT, LONG, LONG, LONG),
    _check_encode,
)
register(
    f"minmax_decode({OUTPUT}, int bits, int block) -> ()",
    minmax_decode,
    native.decodes("minmax_decode", INT, LONG),
    _check_decode,
)
