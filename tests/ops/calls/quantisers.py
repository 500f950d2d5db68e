"""The quantisers with a scale per block, and natural compression."""

from __future__ import annotations

from tests.ops.calls import Call
from tests.ops.calls.dense import both
from tests.ops.dense_case import Format

CALLS: list[Call] = [
    *both(Format("qsgd")),
    *both(Format("qsgd", bits=3, norm2=True, stochastic=True)),
]
