"""The ops of natural compression: formulas and wire layouts are in ``reference/natural.py``."""

from __future__ import annotations

from typing import Any

from . import checks, native
from .dense import INPUT, OUTPUT
from .native import LONG
from .reference.natural import natural_decode, natural_encode
from .schema import register


def _check_natural_encode(op: str, *args: Any) -> None:
    checks.encode(op, *args[:5])
    checks.flat(op, "gain", args[7], checks.F32, args[3].shape[0])


register(
    f"natural_encode({INPUT}, Tensor gain, int step, int rank) -> ()",
    natural_encode,
    native.encodes_with_gain("natural_encode", LONG, LONG),
    _check_natural_encode,
)
register(f"natural_decode({OUTPUT}) -> ()", natural_decode, native.decodes("natural_decode"), checks.decode)
