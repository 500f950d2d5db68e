"""Dense, cast, sign and their like: any ``Format`` of the dense cases."""

from __future__ import annotations

from typing import Any

import torch

from compcomm.ops import backend, native
from tests.ops.calls import Call
from tests.ops.dense_case import Format, case

SIZES = (600, 40)


def encode(form: Format, dtype: torch.dtype | None = torch.float32) -> tuple[Any, ...]:
    """Arguments of ``<form>_encode``; ``dtype`` of the gradient, None: there is none."""
    c = case(form, sizes=SIZES)
    wire, status = torch.zeros(c.nbytes, dtype=torch.uint8), torch.zeros(6, dtype=torch.uint8)
    add = None if dtype is None else c.add.to(dtype)
    return (c.x, add, wire, c.table, status, 0.9, 1.5, *form.encode_tail(c.gain, 1, 0))


def decode(form: Format, accumulate: bool = True, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    """Arguments of ``<form>_decode``: a message twice, into an ``out`` of that type."""
    c = case(form, sizes=SIZES)
    given = encode(form)
    with backend("native" if native.available() else "reference"):
        getattr(torch.ops.compcomm, f"{form.name}_encode")(*given)
    wires, skip = torch.stack([given[2]] * 2), torch.zeros(5, dtype=torch.uint8)
    return (wires, c.table, skip, c.x.to(dtype), 0.5, accumulate, *form.decode_tail())


def both(form: Format) -> list[Call]:
    """Encoders with a gradient of two types and without, decoders that add and that write."""
    return [
        (f"{form.name}_encode", lambda: encode(form)),
        (f"{form.name}_encode", lambda: encode(form, torch.bfloat16)),
        (f"{form.name}_encode", lambda: encode(form, None)),
        (f"{form.name}_decode", lambda: decode(form)),
        (f"{form.name}_decode", lambda: decode(form, False, torch.bfloat16)),
    ]


CALLS: list[Call] = [
    *both(Format("dense")),
    *both(Format("cast")),
    *both(Format("cast", flag=True)),
    *both(Format("sign")),
    *both(Format("sign", block=48, flag=True)),
]
