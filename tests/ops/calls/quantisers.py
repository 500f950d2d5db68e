"""The quantisers with a scale per block, and natural compression."""

from __future__ import annotations

from typing import Any

import torch

from tests.ops.calls import Call
from tests.ops.calls.dense import both, decode, encode
from tests.ops.dense_case import Format
from tests.ops.formats import float8, minmax, natural

LONG = 1 << 17  # a block that no program holds


def straight(form: Any) -> list[Call]:
    """The same with a row that begins and ends where vectors and runs of dithers do: other loads and stores."""
    table = torch.tensor([[0, 0, 512, 4, 0, 77, 0, 0]])

    def encoded() -> tuple[object, ...]:
        x, add, wire, _, status, *rest = encode(form)
        tail = (torch.ones(1), *rest[3:]) if len(rest) > 2 and isinstance(rest[2], torch.Tensor) else rest[2:]
        return (x, add, wire, table, status, *rest[:2], *tail)

    def decoded() -> tuple[object, ...]:
        wires, _, *rest = decode(form)
        return (wires, table, *rest)

    return [(f"{form.name}_encode", encoded), (f"{form.name}_decode", decoded)]


NATURAL, DITHER = natural.FORMATS[0], [form for form in natural.FORMATS if form.name == "natural_dither"]
ODD: list[Any] = [
    Format("qsgd"),
    Format("qsgd", bits=3, norm2=True, stochastic=True),
    Format("qsgd", bits=8, block=48),
    Format("qsgd", bits=2, block=LONG, stochastic=True),
    *(form for form in minmax.FORMATS if form.label in ("1 bits random 48", "4 bits nearest 512")),
    NATURAL,
    DITHER[0],
    *float8.FORMATS[:2],
]
STRAIGHT: list[Any] = [
    Format("qsgd"),
    Format("qsgd", bits=8, stochastic=True),
    Format("qsgd", block=LONG, norm2=True),
    *(form for form in minmax.FORMATS if form.label in ("4 bits random 512", "3 bits nearest 2048")),
    NATURAL,
    DITHER[-1],
    float8.FORMATS[0],
]
CALLS: list[Call] = [
    *(call for form in ODD for call in both(form)),
    *(call for form in STRAIGHT for call in straight(form)),
]
