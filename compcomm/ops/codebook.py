"""The ops of codebook quantisers (formulas and wire layout: ``reference/codebook.py``)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import checks, native
from .dense import INPUT, OUTPUT
from .native import INT, LONG
from .reference.codebook import codebook_decode, codebook_encode
from .schema import register


def _check(op: str, levels: Tensor, bits: int, part: int, block: int) -> None:
    if not 0 <= bits <= 8 or not 0 <= part < 65536 or not 1 <= bits + (part > 0) <= 8:
        raise ValueError(f"compcomm.{op}: bits={bits} and part={part}/65536 of one more; codes have up to 8 bits")
    checks.flat(op, "levels", levels, checks.F32)
    count = (1 << bits >> 1) + (1 << bits if part else 0)
    if levels.numel() != count or levels.device.type != "cpu":
        raise ValueError(
            f"compcomm.{op}: levels has {levels.numel()} elements on {levels.device}; it must hold {count} on the CPU: "
            f"the positive halves of the codebooks of bits={bits} and, with part={part} > 0, of one bit more"
        )
    checks.blocks(op, block)


def _check_encode(op: str, *args: Any) -> None:
    checks.encode(op, *args[:5])
    _check(op, args[7], args[8], args[9], args[11])


def _check_decode(op: str, *args: Any) -> None:
    checks.decode(op, *args[:4])
    _check(op, *args[6:10])


register(
    f"codebook_encode({INPUT}, Tensor levels, int bits, int part, bool dot, int block, int step) -> ()",
    codebook_encode,
    native.encodes("codebook_encode", INT, INT, INT, LONG, LONG, tensors=1),
    _check_encode,
)
register(
    f"codebook_decode({OUTPUT}, Tensor levels, int bits, int part, int block, int step) -> ()",
    codebook_decode,
    native.decodes("codebook_decode", INT, INT, LONG, LONG, tensors=1),
    _check_decode,
)
