"""Top-k's CUDA kernel where lists, guesses and look-back matter: long rows, samples that mislead, several blocks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.ops.sparse_case import KINDS, agree, elements, encoding, make, table_of

SHAPES = ((4096, 41), (65_536, 1), (65_537, 6554), (200_001, 2000), (16_000, 2000), (16_000, 2001), (5000, 5000))


def check(
    x: Tensor, add: Tensor | None, table: Tensor, decay: float = 1.0, add_scale: float = 1.0, odd: int = 0
) -> None:
    hint = torch.full((len(table),), 7.0)
    agree(["cuda"], "topk_encode", *encoding(table, x, add, hint, decay=decay, add_scale=add_scale, odd=odd))


@pytest.mark.parametrize("kind", KINDS)
def test_long_rows(kind: str) -> None:
    for n, k in SHAPES:
        table = table_of([(n, k), (0, 0), (70, 0)])
        x, add = make("normal", elements(table), 1), make(kind, elements(table), 2)
        check(x, add, table, *((0.0, 1.0) if kind == "denormal" else (0.9, -0.25)), odd=n % 2)
    check(add, None, table, 0.5)


@pytest.mark.parametrize(("inside", "outside"), [(1e6, 1.0), (1e-6, 1.0), (0.0, 1.0), (1.0, 0.0)])
def test_a_sample_that_misleads(inside: float, outside: float) -> None:
    """It sees only large elements, or only small ones: the list is too short or too long, and the row is read again."""
    n, samples = 200_001, 8192
    i, cell = torch.arange(samples), n // samples
    seen = torch.zeros(n, dtype=torch.bool)
    seen[i * cell + ((i * 0x9E3779B9) & 0xFFFFFFFF) % cell] = True
    y = make("ascending", n) * torch.where(seen, inside, outside)
    for k in (2000, 9000):
        check(torch.cat((y, torch.ones(1))), None, table_of([(n, k)], add=False, gap=0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    table = table_of([(70_000, 700), (9000, 4501)])
    x, add = make("normal", elements(table), 1), make("ties", elements(table), 2)
    check(x.to(dtype), add.to(dtype), table, 0.9, 0.3)
    check(x, add.to(dtype), table, 0.9, 0.3)
    check(x.to(dtype), None, table)


def test_many_calls_leave_nothing_behind() -> None:
    """Scratch memory is used again by tables that are larger and smaller."""
    for shapes in ([(100, 10)], [(70_000, 70), (100, 100)], [(9000, 90)], [(70_000, 70), (100, 100)]):
        table = table_of(shapes)
        check(make("normal", elements(table), 3), None, table)
