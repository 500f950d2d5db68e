"""Rotations, sketches, statistics of magnitudes, and Elias streams."""

from __future__ import annotations

from typing import Any

import torch

from tests.ops.calls import Call
from tests.ops.dense_case import Case, case
from tests.ops.test_hadamard import NUMBERS


def _rows(sizes: tuple[int, ...]) -> tuple[Case, torch.Tensor, torch.Tensor]:
    c = case(NUMBERS, sizes=sizes)
    return c, torch.zeros(c.nbytes, dtype=torch.uint8), torch.zeros(6, dtype=torch.uint8)


def rotate(sizes: tuple[int, ...], block: int, dtype: torch.dtype | None = torch.float32) -> tuple[Any, ...]:
    """Forward; ``dtype`` of the gradient, None: there is none."""
    c, z, status = _rows(sizes)
    return (c.x, None if dtype is None else c.add.to(dtype), z, c.table, status, 0.9, 1.5, block, 3)


def rotate_back(
    sizes: tuple[int, ...], block: int, accumulate: bool = True, dtype: torch.dtype = torch.float32
) -> tuple[Any, ...]:
    c, z, skip = _rows(sizes)
    return (z.unsqueeze(0), c.table, skip[:5], c.x.to(dtype), 0.5, accumulate, block, 3)


ROTATIONS = {16: (4100, 40), 512: (5000,), 2048: (5000,), 4096: (9000,), 1 << 15: (70_001,), 1 << 17: (300_000, 99)}
CALLS: list[Call] = [
    *(("hadamard_forward", lambda b=b, n=n: rotate(n, b)) for b, n in ROTATIONS.items()),
    *(("hadamard_inverse", lambda b=b, n=n: rotate_back(n, b)) for b, n in ROTATIONS.items()),
    ("hadamard_forward", lambda: rotate((4100, 40), 64, None)),
    ("hadamard_forward", lambda: rotate((4100, 40), 64, torch.bfloat16)),
    ("hadamard_inverse", lambda: rotate_back((4100, 40), 64, False, torch.bfloat16)),
]
