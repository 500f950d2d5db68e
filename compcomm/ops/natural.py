"""The ops of natural compression and natural dithering: formulas and wire layouts are in ``reference/``."""

from __future__ import annotations

from typing import Any

from . import checks, native
from .dense import INPUT, OUTPUT
from .native import INT, LONG
from .reference.natural import natural_decode, natural_encode
from .reference.natural_dither import natural_dither_decode, natural_dither_encode
from .schema import register


def _check_parameters(op: str, bits: int, block: int) -> None:
    if not 2 <= bits <= 8:
        raise ValueError(f"compcomm.{op}: bits={bits}; codes have 2 to 8 bits")
    checks.blocks(op, block)


def _check_dither_encode(op: str, *args: Any) -> None:
    checks.with_gain(op, *args[:8])
    _check_parameters(op, args[8], args[10])


def _check_dither_decode(op: str, *args: Any) -> None:
    checks.decode(op, *args[:4])
    _check_parameters(op, args[6], args[7])


register(
    f"natural_encode({INPUT}, Tensor gain, int step, int rank) -> ()",
    natural_encode,
    native.encodes("natural_encode", LONG, LONG, tensors=1),
    checks.with_gain,
)
register(f"natural_decode({OUTPUT}) -> ()", natural_decode, native.decodes("natural_decode"), checks.decode)
register(
    f"natural_dither_encode({INPUT}, Tensor gain, int bits, bool norm2, int block, int step, int rank) -> ()",
    natural_dither_encode,
    native.encodes("natural_dither_encode", INT, INT, LONG, LONG, LONG, tensors=1),
    _check_dither_encode,
)
register(
    f"natural_dither_decode({OUTPUT}, int bits, int block) -> ()",
    natural_dither_decode,
    native.decodes("natural_dither_decode", INT, LONG),
    _check_dither_decode,
)
