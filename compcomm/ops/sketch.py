"""Count and Gaussian sketches, encode and decode; formulas and wire layouts are in ``reference/sketch.py``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import checks, native
from .dense import INPUT, OUTPUT
from .native import LONG, POINTER
from .reference.sketch import count_decode, count_encode, gauss_decode, gauss_encode
from .schema import register


def _check_encode(op: str, *args: Any) -> None:
    checks.encode(op, *args[:5])
    checks.flat(op, "gain", args[7], checks.F32, numel=args[3].shape[0])
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


def _gauss_encode() -> Callable[..., int] | None:
    f = native.encoder("cc_gauss_encode", POINTER, POINTER, LONG)
    if f is None:
        return None
    return lambda *args: native.encode(f, *args[:7], args[7].data_ptr(), args[8].data_ptr(), args[9])


def _gauss_decode() -> Callable[..., int] | None:
    f = native.decoder("cc_gauss_decode", POINTER, LONG)
    if f is None:
        return None
    return lambda *args: native.decode(f, *args[:6], args[6].data_ptr(), args[7])


register(
    f"count_encode({INPUT}, Tensor gain, int step) -> ()",
    count_encode,
    native.encodes_with_gain("count_encode", LONG),
    _check_encode,
)
register(f"count_decode({OUTPUT}, int step) -> ()", count_decode, native.decodes("count_decode", LONG), _check_decode)
register(
    f"gauss_encode({INPUT}, Tensor gain, Tensor quantiles, int step) -> ()",
    gauss_encode,
    _gauss_encode(),
    _check_encode,
)
register(f"gauss_decode({OUTPUT}, Tensor quantiles, int step) -> ()", gauss_decode, _gauss_decode(), _check_decode)
