"""The ops of QSGD in Elias codes: sections of variable length, whose bits are checked as they are read.

Formulas and layout are in ``reference/elias.py``; here each op gets its schema, its checks and its C function.
"""

from __future__ import annotations

from typing import Any

from . import checks, native
from .dense import INPUT, OUTPUT
from .native import INT, LONG
from .reference.elias import corrupt, elias_decode, elias_encode
from .schema import register


def _check_encode(op: str, *args: Any) -> None:
    checks.with_gain(op, *args[:8])
    checks.qsgd(op, args[8], args[9], args[12])


def _check_decode(op: str, *args: Any) -> None:
    checks.decode(op, *args[:4])
    checks.qsgd(op, *args[6:9])


register(
    f"elias_encode({INPUT}, Tensor gain, int bits, int levels, bool norm2, bool stochastic, int block, int step, "
    "int rank) -> ()",
    elias_encode,
    native.encodes("elias_encode", INT, INT, INT, INT, LONG, LONG, LONG, tensors=1),
    _check_encode,
    serial=True,
)
register(
    f"elias_decode({OUTPUT}, int bits, int levels, int block) -> ()",
    elias_decode,
    native.decodes("elias_decode", INT, INT, LONG),
    _check_decode,
    corrupt=corrupt,
    serial=True,
)
