"""Rotations, sketches, statistics of magnitudes, and Elias streams."""

from __future__ import annotations

from typing import Any

import torch

from tests.ops import test_sketch
from tests.ops.calls import Call
from tests.ops.calls.dense import both
from tests.ops.dense_case import Case, case
from tests.ops.formats import elias
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


def magnitudes(squares: bool, logs: bool, dtype: torch.dtype | None = torch.float32) -> tuple[Any, ...]:
    c, wire, status = _rows((600, 40))
    stats = torch.zeros(2, 5, dtype=torch.float64)
    add = None if dtype is None else c.add.to(dtype)
    return (c.x, add, wire, c.table, status, 0.9, 1.5, stats, squares, logs)


def tails(first: bool, squares: bool, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    c, _, _ = _rows((600, 40))
    stats = torch.tensor([[600.0, 0, 0, 0, 0], [30, 0, 0, 0, 0]], dtype=torch.float64)
    return (c.x.to(dtype), c.add.abs(), c.table, torch.tensor([0.5, torch.nan]), stats, first, squares)


def sketches(name: str, dtype: torch.dtype | None = torch.float32) -> tuple[Any, ...]:
    c = test_sketch.sketched(name, sizes=(600, 40))
    wire, status = torch.zeros(c.nbytes, dtype=torch.uint8), torch.zeros(6, dtype=torch.uint8)
    add = None if dtype is None else c.add.to(dtype)
    return (c.x, add, wire, c.table, status, 0.9, 1.5, c.gain, *test_sketch.tail(name), 3)


def sketches_back(name: str, accumulate: bool, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    c = test_sketch.sketched(name, sizes=(600, 40))
    wires, skip = torch.zeros(2, c.nbytes, dtype=torch.uint8), torch.zeros(5, dtype=torch.uint8)
    return (wires, c.table, skip, c.x.to(dtype), 0.5, accumulate, *test_sketch.tail(name), 3)


ROTATIONS = {16: (4100, 40), 512: (5000,), 2048: (5000,), 4096: (9000,), 1 << 15: (70_001,), 1 << 17: (300_000, 99)}
CALLS: list[Call] = [
    *(("hadamard_forward", lambda b=b, n=n: rotate(n, b)) for b, n in ROTATIONS.items()),
    *(("hadamard_inverse", lambda b=b, n=n: rotate_back(n, b)) for b, n in ROTATIONS.items()),
    ("hadamard_forward", lambda: rotate((4100, 40), 64, None)),
    ("hadamard_forward", lambda: rotate((4100, 40), 64, torch.bfloat16)),
    ("hadamard_inverse", lambda: rotate_back((4100, 40), 64, False, torch.bfloat16)),
    ("magnitude_stats", lambda: magnitudes(True, True)),
    ("magnitude_stats", lambda: magnitudes(True, False, torch.bfloat16)),
    ("magnitude_stats", lambda: magnitudes(False, False, None)),
    ("tail_stats", lambda: tails(True, True)),
    ("tail_stats", lambda: tails(True, False, torch.bfloat16)),
    ("tail_stats", lambda: tails(False, True)),
    *((f"{s}_encode", lambda s=s: sketches(s)) for s in ("count", "gauss")),
    *((f"{s}_encode", lambda s=s: sketches(s, None)) for s in ("count", "gauss")),
    *((f"{s}_encode", lambda s=s: sketches(s, torch.bfloat16)) for s in ("count", "gauss")),
    *((f"{s}_decode", lambda s=s: sketches_back(s, True)) for s in ("count", "gauss")),
    *((f"{s}_decode", lambda s=s: sketches_back(s, False, torch.bfloat16)) for s in ("count", "gauss")),
    *(call for form in (elias.form(4, 7), elias.form(8, 127, True, True, 48)) for call in both(form)),
    *both(elias.form(3, 3, block=1 << 20)),
]
