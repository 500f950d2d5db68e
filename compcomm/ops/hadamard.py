"""The randomised Hadamard transform as two ops; the formula is in ``reference/hadamard.py``.

``z`` is a vector of fp32 numbers seen as bytes, so that the arguments are those of an encoder and of a decoder: column
``wire`` of the table says at which byte a row's numbers begin. Unlike an encoder the forward op leaves all of y in x.
"""

from __future__ import annotations

from typing import Any

from . import checks, native
from .dense import INPUT, OUTPUT
from .native import LONG
from .reference.hadamard import hadamard_forward, hadamard_inverse
from .schema import register

LARGEST = 1 << 20


def _block(op: str, block: int) -> None:
    if block < 16 or block > LARGEST or block & (block - 1):
        raise ValueError(f"compcomm.{op}: block={block} must be a power of two from 16 to {LARGEST}")


def _check_forward(op: str, *args: Any) -> None:
    checks.encode(op, *args[:5])
    _block(op, args[7])


def _check_inverse(op: str, *args: Any) -> None:
    checks.decode(op, *args[:4])
    if args[0].shape[0] != 1:
        raise ValueError(f"compcomm.{op}: wires has {args[0].shape[0]} vectors; sum them first, R is linear")
    _block(op, args[6])


register(
    f"hadamard_forward({INPUT}, int block, int step) -> ()",
    hadamard_forward,
    native.encodes("hadamard_forward", LONG, LONG),
    _check_forward,
)
register(
    f"hadamard_inverse({OUTPUT}, int block, int step) -> ()",
    hadamard_inverse,
    native.decodes("hadamard_inverse", LONG, LONG),
    _check_inverse,
)
