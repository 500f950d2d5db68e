"""The quantisers with a scale per block, and natural compression."""

from __future__ import annotations

from tests.ops.calls import Call
from tests.ops.calls.dense import both
from tests.ops.dense_case import Format
from tests.ops.formats import float8, minmax, natural

LONG = 1 << 17  # a block that no program holds

CALLS: list[Call] = [
    call
    for form in (
        Format("qsgd"),
        Format("qsgd", bits=3, norm2=True, stochastic=True),
        Format("qsgd", bits=8, block=48),
        Format("qsgd", bits=2, block=LONG, stochastic=True),
        Format("qsgd", block=LONG, norm2=True),
        *(
            form
            for form in minmax.FORMATS
            if form.label in ("1 bits random 48", "4 bits random 512", "3 bits nearest 2048")
        ),
        natural.FORMATS[0],
        *(form for form in natural.FORMATS if form.label.startswith(("2 bits, max", "8 bits, L2"))),
        *float8.FORMATS[:2],
    )
    for call in both(form)
]
