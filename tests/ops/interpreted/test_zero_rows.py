"""Rows of zeros on GPU kernels are the reference's."""

from __future__ import annotations

import pytest
import torch

from compcomm.ops import backend
from tests.ops.calls.zero_rows import CALLS

OPS = torch.ops.compcomm


@pytest.mark.parametrize("number", range(len(CALLS)))
def test_the_kernel_gives_the_same_bits(number: int) -> None:
    op, make = CALLS[number]
    expected, found = make(), make()
    with backend("reference"):
        getattr(OPS, op)(*expected)
    with backend("triton"):
        getattr(OPS, op)(*found)
    for a, b in zip(expected, found, strict=True):
        assert a is None or torch.equal(a.view(torch.uint8), b.view(torch.uint8))
