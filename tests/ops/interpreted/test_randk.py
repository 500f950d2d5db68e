"""Rand-k on GPU kernels: the reference's permutation, and its bits."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from compcomm.ops.reference.randk import randk_indices
from compcomm.ops.triton.launch import launch
from compcomm.ops.triton.randk import permuted
from tests.ops.interpreted.agreement import backends
from tests.ops.sparse_case import agree, elements, encoding, make, nbytes, rows_of_kinds, table_of

SHAPES = [(60, 3), (0, 0), (257, 60), (5000, 1030)]  # of far fewer than 256, an element is looked for long


@triton.jit
def _indices(out, numel, key, offset, step, k, WIDE: tl.constexpr):
    m = tl.arange(0, WIDE).to(tl.int64)
    i = permuted(tl.where(m < k, m, 0), tl.load(numel), tl.load(key), tl.load(offset), step)
    tl.store(out + m, i, mask=m < k)


def test_the_permutation_equals_the_reference() -> None:
    for numel, key, offset, step in (
        (20, 0, 0, 0), (256, 0, 0, 0), (257, -5, 2**33 + 7, 2**40 + 1), (65_537, 0, 0, 0), (2**32, -5, 2**33 + 7, 3),
        (2**38 + 1, 0, 1, 0), (2**40, -5, 2**33 + 7, 2**40 + 1),
    ):  # fmt: skip
        k = min(numel, 16)
        out = torch.zeros(k, dtype=torch.int64)
        launch(_indices, 1, out, *(torch.tensor([v]) for v in (numel, key, offset)), step, k, WIDE=16)
        assert torch.equal(out, randk_indices(key, numel, k, offset, step)), numel


@pytest.mark.parametrize("backend", backends("randk_encode"))
def test_encoding_equals_the_reference(backend: str) -> None:
    table, gain = table_of(SHAPES), torch.tensor([1e30, 1, 1, 5.0])
    x, add = rows_of_kinds(table, ["normal", "normal", "huge", "nonfinite"])
    agree([backend], "randk_encode", *encoding(table, x, add, gain, 3, decay=0.9, add_scale=0.5))
    few = table_of(SHAPES[:3])
    agree([backend], "randk_encode", *encoding(few, add[: elements(few)], None, gain[:3], 2**33 + 1, decay=0.9))


@pytest.mark.parametrize("backend", backends("randk_decode"))
def test_decoding_equals_the_reference(backend: str) -> None:
    table = table_of(SHAPES)
    x = make("normal", elements(table), 1)
    wires = torch.zeros(3, nbytes(table) + 1, dtype=torch.uint8)[:, 1:]
    wires.copy_(make("normal", 3 * nbytes(table) // 4, 2).view(torch.uint8).view(3, -1))
    for count, accumulate, absent, skip, out in ((3, False, 0, [0, 1], x.bfloat16()), (2, True, None, [0, 0], x)):
        chosen, skipped = table.clone(), torch.tensor(skip, dtype=torch.uint8)
        if absent is not None:
            chosen[absent, 0] = -1
        agree([backend], "randk_decode", wires[:count], chosen, skipped, out, 0.3, accumulate, 3)
