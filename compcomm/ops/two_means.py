"""The ops of two means; the formula and the wire are in ``reference/two_means.py``."""

from __future__ import annotations

from typing import Any

from . import checks, native
from .dense import INPUT, OUTPUT
from .native import LONG
from .reference.two_means import two_means_decode, two_means_encode
from .schema import register


def _check_encode(op: str, *args: Any) -> None:
    checks.encode(op, *args[:5])
    checks.blocks(op, args[7])


def _check_decode(op: str, *args: Any) -> None:
    checks.decode(op, *args[:4])
    checks.blocks(op, args[6])


register(
    f"two_means_encode({INPUT}, int block) -> ()",
    two_means_encode,
    native.encodes("two_means_encode", LONG),
    _check_encode,
)
register(
    f"two_means_decode({OUTPUT}, int block) -> ()",
    two_means_decode,
    native.decodes("two_means_decode", LONG),
    _check_decode,
)
