"""The ops of TernGrad; the formula and the wire are in ``reference/ternary.py`` and ``reference/trits.py``."""

from __future__ import annotations

from math import inf
from typing import Any

from . import checks, native
from .dense import INPUT, OUTPUT
from .native import FLOAT, LONG
from .reference.ternary import ternary_decode, ternary_encode
from .schema import register


def _check_encode(op: str, *args: Any) -> None:
    checks.with_gain(op, *args[:8])
    clip, block = args[8:10]
    if clip != 0 and not 1 <= clip < inf:
        raise ValueError(f"compcomm.{op}: clip={clip} is neither 0 (none) nor a finite number from 1 on")
    checks.blocks(op, block)


def _check_decode(op: str, *args: Any) -> None:
    checks.decode(op, *args[:4])
    checks.blocks(op, args[6])


register(
    f"ternary_encode({INPUT}, Tensor gain, float clip, int block, int step, int rank) -> ()",
    ternary_encode,
    native.encodes("ternary_encode", FLOAT, LONG, LONG, LONG, tensors=1),
    _check_encode,
)
register(
    f"ternary_decode({OUTPUT}, int block) -> ()",
    ternary_decode,
    native.decodes("ternary_decode", LONG),
    _check_decode,
)
