"""What schemes do to their memory: in fp32, in half precision beside it, in fp64."""

from __future__ import annotations

from typing import Any

import torch

from tests.ops.calls import Call

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
TABLE = torch.tensor([[0, 1, 600, 0], [603, 605, 40, 1]])


ALIGNED = torch.tensor([[0, 4, 600, 0], [604, 608, 40, 1]])


def flat(dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(650, generator=torch.Generator().manual_seed(seed)).to(dtype)


def status() -> torch.Tensor:
    return torch.zeros(3, dtype=torch.uint8)


def axpby(to: torch.dtype, source: torch.dtype, alpha: float, table: torch.Tensor = TABLE) -> tuple[Any, ...]:
    beta = torch.tensor([0.5, 2.0]).to(F64 if source is F64 else F32)
    return (flat(to), flat(source, 1), table, beta, status(), alpha)


def add_correction(x: torch.dtype, others: torch.dtype) -> tuple[Any, ...]:
    return (flat(x), flat(others, 1), flat(others, 2), TABLE, status(), 0.3, 2.0)


def nonzero_segments(dtype: torch.dtype) -> tuple[Any, ...]:
    return (flat(dtype), TABLE, status())


def norms(dtype: torch.dtype) -> tuple[Any, ...]:
    """A long row and a short one."""
    table = torch.tensor([[0, 1, 20_000, 0], [0, 7, 40, 1]])
    return (torch.ones(20_001, dtype=dtype), table, torch.zeros(2, dtype=F64))


CALLS: list[Call] = [
    ("axpby", lambda: axpby(F32, F32, 0.5)),
    ("axpby", lambda: axpby(F32, BF16, 0.0)),
    ("axpby", lambda: axpby(BF16, F32, 0.5)),
    ("axpby", lambda: axpby(F64, F64, 0.5)),
    ("axpby", lambda: axpby(F32, F32, 0.5, ALIGNED)),
    ("add_correction", lambda: add_correction(F32, F32)),
    ("add_correction", lambda: add_correction(F16, F32)),
    ("add_correction", lambda: add_correction(F64, F64)),
    ("nonzero_segments", lambda: nonzero_segments(F32)),
    ("nonzero_segments", lambda: nonzero_segments(BF16)),
    ("nonzero_segments", lambda: nonzero_segments(F64)),
    ("norms", lambda: norms(F32)),
    ("norms", lambda: norms(BF16)),
    ("norms", lambda: norms(F64)),
]
