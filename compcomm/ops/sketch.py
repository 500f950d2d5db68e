"""Count and Gaussian sketches, encode and decode; formulas and wire layouts are in ``reference/sketch.py``."""

from __future__ import annotations

from typing import Any

import torch

from . import checks, native
from .dense import INPUT, OUTPUT
from .native import LONG
from .reference.sketch import count_decode, count_encode, gauss_decode, gauss_encode
from .schema import register


def _check_encode(op: str, *args: Any) -> None:
    checks.with_gain(op, *args[:8])
    if op == "gauss_encode":
        _quantiles(op, args[8])


def _check_decode(op: str, *args: Any) -> None:
    checks.decode(op, *args[:4])
    if op == "gauss_decode":
        _quantiles(op, args[6])


def _quantiles(op: str, quantiles: torch.Tensor) -> None:
    checks.flat(op, "quantiles", quantiles, checks.F32)
    if quantiles.numel() != 1 << 16:
        raise ValueError(f"compcomm.{op}: quantiles has {quantiles.numel()} elements; it needs one per 16-bit number")


register(
    f"count_encode({INPUT}, Tensor gain, int step) -> ()",
    count_encode,
    native.encodes("count_encode", LONG, tensors=1),
    _check_encode,
)
register(f"count_decode({OUTPUT}, int step) -> ()", count_decode, native.decodes("count_decode", LONG), _check_decode)
register(
    f"gauss_encode({INPUT}, Tensor gain, Tensor quantiles, int step) -> ()",
    gauss_encode,
    native.encodes("gauss_encode", LONG, tensors=2),
    _check_encode,
)
register(
    f"gauss_decode({OUTPUT}, Tensor quantiles, int step) -> ()",
    gauss_decode,
    native.decodes("gauss_decode", LONG, tensors=1),
    _check_decode,
)
