"""Rotations on GPU kernels answer to the reference bit for bit."""

from __future__ import annotations

import pytest
import torch

from tests.ops.dense_case import case, gaps, same
from tests.ops.interpreted.agreement import backends, full
from tests.ops.test_hadamard import NUMBERS, SKIP, forward, inverse

ROWS = {16: (0, 1, 17, 4096, 4097), 512: (513, 5000), 2048: (4096 + 2047,), 4096: (4095, 4097), 8192: (8191, 12288)}
LARGE = {1 << 15: (70_001, 100), 1 << 16: (4097, (1 << 16) + 4099), 1 << 20: (5000, 4096 * 5 + 9)}


@pytest.mark.parametrize("block", [*ROWS, 1 << 15, full(1 << 16), 1 << 20])
@pytest.mark.parametrize("backend", backends("hadamard_forward", "hadamard_inverse"))
def test_hadamard(backend: str, block: int) -> None:
    """Every kind of number; rows at odd places, and at multiples of 32 of their parameters; skipped and absent rows."""
    sizes = (ROWS | LARGE)[block]
    for seed, kind in enumerate(("normal", "denormal", "huge", "nonfinite") if block == 512 else ("nonfinite",)):
        c = case(NUMBERS, kind, sizes, seed)
        if seed % 2 or block in (1 << 15, 1 << 20):
            c.table[:, 4] = 32 * torch.arange(len(sizes)) + (1 << 39)
        at, _, n, *_ = c.table[-1].tolist()
        c.x[at + n // 2] = -(2.0**66)  # of a block that is not rotated
        due, found = forward("reference", c, block), forward(backend, c, block)
        assert all(same(a, b) for a, b in zip(found, due, strict=True)), kind
        outside = gaps([(r[0], r[2]) for r in c.table.tolist()], c.x.numel())
        poisoned = torch.where(outside, torch.nan, c.add.nan_to_num())
        z = forward("reference", c._replace(add=c.add.nan_to_num().clamp(-9, 9)), block)[1]
        skip, table = SKIP.clone(), c.table.clone()
        skip[0], skip[1], table[0, 0] = block == 1 << 16, seed % 2, -1 if seed > 1 else table[0, 0]
        for accumulate in (False, True):
            expected = inverse("reference", z, table, poisoned, block, 0.3, accumulate, skip)
            assert same(inverse(backend, z, table, poisoned, block, 0.3, accumulate, skip), expected), (
                kind,
                accumulate,
            )


@pytest.mark.parametrize("backend", backends("hadamard_forward", "hadamard_inverse"))
def test_hadamard_in_half_precision(backend: str) -> None:
    c = case(NUMBERS, "normal", (4096 + 33, 600))
    x, add = c.x.bfloat16(), c.add.half()
    wide = c._replace(x=x.float(), add=add.float())
    due, found = forward("reference", wide, 64), forward(backend, c._replace(x=x, add=add), 64)
    assert same(found[0], due[0].bfloat16()) and same(found[1], due[1])
    back = inverse(backend, due[1], c.table, x, 64, 0.3)
    assert same(back, inverse("reference", due[1], c.table, x.float(), 64, 0.3).bfloat16())
