"""The ops of eight-bit floating point: formula and wire layout are in ``reference/float8.py``."""

from __future__ import annotations

from typing import Any

from . import checks, native
from .dense import INPUT, OUTPUT
from .native import INT, LONG
from .reference.float8 import float8_decode, float8_encode
from .schema import register


def _check_encode(op: str, *args: Any) -> None:
    checks.encode(op, *args[:5])
    checks.blocks(op, args[8])


def _check_decode(op: str, *args: Any) -> None:
    checks.decode(op, *args[:4])
    checks.blocks(op, args[7])


register(
    f"float8_encode({INPUT}, bool e5m2, int block) -> ()",
    float8_encode,
    native.encodes("float8_encode", INT, LONG),
    _check_encode,
)
register(
    f"float8_decode({OUTPUT}, bool e5m2, int block) -> ()",
    float8_decode,
    native.decodes("float8_decode", INT, LONG),
    _check_decode,
)
