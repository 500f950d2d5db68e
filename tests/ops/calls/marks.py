"""Message headers, and rows that a mark chooses."""

from __future__ import annotations

import torch

from compcomm.ops.reference.header import size
from tests.ops.calls import Call

SPANS = torch.tensor([[3, 0, 700, 0], [710, 700, 0, 1], [800, 701, 5000, 2]])


def written(count: int = 21) -> tuple[object, ...]:
    """Two headers of ``count`` segments, every third of which is dead."""
    status = (torch.arange(1 + count) % 3 != 1).to(torch.uint8)
    places = torch.tensor([[0, 96], [100, 77]])
    return torch.zeros(200, dtype=torch.uint8), status, places, 0, 1, 2**32 + 5, 3


def read(count: int = 21) -> tuple[object, ...]:
    """Two messages of zeros, which cannot be true."""
    wires, outcome = torch.zeros(2, size(count) + 9, dtype=torch.uint8), torch.zeros(1 + count, dtype=torch.uint8)
    return wires, outcome, torch.zeros(1, dtype=torch.int64), torch.tensor([40, 40]), 5, 3


def summed(count: int = 21) -> tuple[object, ...]:
    """The sums of three ranks, where every third segment is dead."""
    sums = torch.cat((torch.tensor([36.0, 0.0]), (torch.arange(count) % 3).float()))
    return sums, torch.zeros(1 + count, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), 36.0


def marked(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.linspace(-2.0, 2.0, 6000).to(dtype)


MARKS = torch.tensor([1, 1, 0], dtype=torch.uint8)
CALLS: list[Call] = [
    ("header_write", written),
    ("header_read", read),
    ("sums_read", summed),
    ("fill_masked", lambda: (marked(), SPANS, MARKS, float("nan"))),
    ("fill_masked", lambda: (marked(torch.bfloat16), SPANS, MARKS, 0.0)),
    ("axpby_masked", lambda: (marked(), marked(), SPANS, 1 - MARKS, 0.5, -1.0)),
    ("axpby_masked", lambda: (marked(torch.float64), marked(torch.float64), SPANS, MARKS, 1.0, 1.0)),
]
