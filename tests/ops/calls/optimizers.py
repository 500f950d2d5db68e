"""Optimizer steps: lists of one dtype and of several, aligned and not, with every term and without."""

from __future__ import annotations

from typing import Any

import torch

from tests.ops.calls import Call

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
SHAPES = ((300, 10), (40,))
Types = tuple[torch.dtype, ...]


def lists(params: Types, grads: Types, shift: int = 0) -> tuple[list[torch.Tensor], list[torch.Tensor], list[int]]:
    """``shift``: of the first parameter in the moments; 1 is not aligned."""
    return (
        [torch.ones(s, dtype=d) for s, d in zip(SHAPES, params, strict=True)],
        [torch.ones(s, dtype=d) for s, d in zip(SHAPES, grads, strict=True)],
        [shift, 3000 + 4 * shift],
    )


def moments() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones(3100), torch.ones(3100)


def adam(params: Types, grads: Types, decay: float = 0.0, l2: float = 0.0, shift: int = 0) -> tuple[Any, ...]:
    return (*lists(params, grads, shift), *moments(), 0.9, 0.999, 1.0, 0.1, 1.0, 1e-8, decay, l2)


def momentum(params: Types, grads: Types, l2: float = 0.0) -> tuple[Any, ...]:
    p, g, starts = lists(params, grads)
    return (g, p, starts, *moments(), 0.9, 1.0, l2, torch.zeros(1, dtype=torch.uint8))


def descend(params: Types, decay: float = 0.0) -> tuple[Any, ...]:
    p, _, starts = lists(params, params)
    return (p, starts, *moments(), 0.1, decay)


CALLS: list[Call] = [
    ("adam", lambda: adam((F32, F32), (F32, F32))),
    ("adam", lambda: adam((F32, F32), (F32, F32), shift=1)),
    ("adam", lambda: adam((BF16, BF16), (BF16, BF16), decay=0.1)),
    ("adam", lambda: adam((BF16, F32), (F16, F32), 0.1, 0.2)),
    ("momentum", lambda: momentum((F32, F32), (F32, F32))),
    ("momentum", lambda: momentum((BF16, F32), (BF16, F16), 0.1)),
    ("descend", lambda: descend((F32, F32))),
    ("descend", lambda: descend((BF16, F16), 0.1)),
]
