"""Rows of zeros: rows of 5, 40 and 700 elements, the last cut in the middle of its first row."""

from __future__ import annotations

import torch

from tests.ops.calls import Call

LINES = torch.tensor(
    [[0, 3, 200, 4, 0, 0, 5, 0], [200, 203, 1600, 12, 0, 0, 40, 1], [1801, 1804, 1399, 20, 1, 0, 700, 2]]
)
GRADIENT_ALONE = torch.tensor([[-1, 0, 1600, 0, 0, 0, 40, 0]])


def flat(dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    found = torch.randn(3203, generator=torch.Generator().manual_seed(seed))
    found[5:31] = found[400:530] = found[2400:] = 0.0
    return found.to(dtype)


def bits(value: int = 0) -> torch.Tensor:
    return torch.full((24,), value, dtype=torch.uint8)


CALLS: list[Call] = [
    ("zero_rows_mark", lambda: (flat(torch.float32), flat(torch.float32, 1), bits(), LINES)),
    ("zero_rows_mark", lambda: (None, flat(torch.bfloat16), bits(), GRADIENT_ALONE)),
    ("zero_rows_mark", lambda: (flat(torch.float32), None, bits(), LINES)),
    ("zero_rows_clear", lambda: (flat(torch.float32), bits(0b10110101), LINES)),
    ("zero_rows_clear", lambda: (flat(torch.bfloat16), bits(0b10110101), LINES)),
]
