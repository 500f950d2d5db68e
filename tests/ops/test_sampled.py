"""Top-k by a sampled threshold: kernels answer to the reference, and its sample to the rule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from compcomm.ops import native
from compcomm.ops.reference.sampled import plan
from tests.ops.sparse_case import IMPLEMENTATIONS, KINDS, elements, make, nbytes, same, table_of, using

OPS = torch.ops.compcomm
SIZES = (1, 2, 17, 64, 100, 1000, 4097, 65537, 200_001)


def encode(
    implementation: str, op: str, x: Tensor, add: Tensor | None, table: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    """x, wire and status after one call on copies, buffers poisoned."""
    left, wire = x.clone(), torch.full((nbytes(table),), 0xA5, dtype=torch.uint8)
    status = torch.tensor([0, 0, 4, 0], dtype=torch.uint8)
    with using(implementation):
        getattr(OPS, op)(left, add, wire, table, status, *rest)
    return left, wire, status


def agree(op: str, x: Tensor, add: Tensor | None, table: Tensor, *rest: Any) -> None:
    truth = encode("reference", op, x, add, table, *rest)
    for implementation in native.isas():
        for due, found in zip(truth, encode(implementation, op, x, add, table, *rest), strict=True):
            assert same(due, found), (implementation, table, rest)


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_equal_the_reference(kind: str) -> None:
    for n in SIZES:
        ratios = (0.002, 0.1) if n > 10_000 else (0.0, 0.003, 0.01, 0.1, 0.5, 1.0)
        for number, k in enumerate(sorted({min(n, max(1, round(n * ratio))) for ratio in ratios})):
            table = table_of([(n, k), (0, 0), (min(n, 70), min(n, 7)), (50, 0)])
            x, add = make("nonfinite" if number == 1 else "normal", elements(table), 1), make(kind, elements(table), 2)
            decay, add_scale = ((1.0, 1.0), (0.0, 1.0), (0.9, -0.25))[number % 3]
            agree("topk_sampled_encode", x, add, table, decay, add_scale, 7 * number, 2)
            if number == 1:
                agree("topk_sampled_encode", add, None, table, 0.5, 1.0, 5, 1)


@pytest.mark.parametrize(("n", "k"), [(20_000, 200), (300_000, 300), (1000, 100), (5000, 3), (64, 37), (300, 250)])
def test_a_sample_that_misleads(n: int, k: int) -> None:
    """Large elements where the sample of this step looks, and small ones there: too high and too low a threshold."""
    table = table_of([(n, k)], add=False, gap=0)
    stride, _ = plan(n, k)
    noise = make("normal", n)
    for start in range(0, stride, max(1, stride // 5)):
        for inside, outside in ((100.0, 1.0), (0.01, 1.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1e-38)):
            y = noise * outside
            y[start::stride] = noise[start::stride] * inside
            for step in range(3):
                agree("topk_sampled_encode", y, None, table, 1.0, 1.0, step, 0)


@pytest.mark.slow
def test_the_sample_is_as_large_as_it_must_be() -> None:
    for n in (1, 3, 100, 101, 1000, 12_345, 1_000_000, 25_600_000):
        for k in {1, 2, 3, 10, max(1, n // 1000), max(1, n // 100), max(1, n // 3), n} & set(range(1, n + 1)):
            stride, top = plan(n, k)
            m = max(-(-n // 100), -(-2 * n // k))
            assert stride % 8 == 1 and 1 <= top <= k
            if stride > 1:
                assert n // stride >= m > n // (stride + 8), "no closer than needed"
                assert top == -(-m * k // n) >= 2


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_count_chosen_by_the_caller(implementation: str) -> None:
    """``topk_some_encode``: that many of the largest, the rest of the capacity zero bytes, whatever the bound."""
    table = table_of([(5000, 50), (70_000, 300), (40, 40), (9, 0)])
    add = make("ties", elements(table), 2)
    x, counts = make("normal", elements(table), 1), torch.tensor([13, 300, 0, 0])
    y = x + add[torch.arange(len(add)).add(1).clamp(max=len(add) - 1)]
    for bound in (0.0, 0.1, 2.5, 1e30, float("nan"), -1.0):
        bounds = torch.full((4,), bound)
        agree("topk_some_encode", x, add, table, 1.0, 1.0, counts, bounds)
        left, wire, _ = encode(implementation, "topk_some_encode", x, add, table, 1.0, 1.0, counts, bounds)
        sent = torch.zeros_like(x)
        with using(implementation):
            OPS.topk_decode(wire[None], table, torch.zeros(2, dtype=torch.uint8), sent, 1.0, False)
        assert torch.equal((left + sent)[3:5003], y[3:5003])
        assert int((sent[3:5003] != 0).sum()) == 13 and int((sent != 0).sum()) == 313
        begin = int(table[0, 3])
        assert not bool(wire[begin + 4 + 26 : begin + 4 + 100].any() | wire[begin + 104 + 52 : begin + 304].any())
    for wrong in (51, -1):
        counts[0] = wrong
        with pytest.raises(ValueError, match=rf"topk_some_encode: table row 0: counts is {wrong}, the capacity k 50"):
            encode(implementation, "topk_some_encode", x, add, table, 1.0, 1.0, counts, bounds)


def test_opcheck() -> None:
    table = table_of([(1000, 30), (40, 3)])
    x, add = make("normal", elements(table)), make("normal", elements(table))
    wire, status = torch.zeros(nbytes(table), dtype=torch.uint8), torch.zeros(3, dtype=torch.uint8)
    tests = ("test_schema", "test_faketensor")
    head = (x, add, wire, table, status, 1.0, 1.0)
    torch.library.opcheck(OPS.topk_sampled_encode, (*head, 1, 2), test_utils=tests)
    counts, bounds = torch.tensor([3, 3]), torch.zeros(2)
    torch.library.opcheck(OPS.topk_some_encode, (*head, counts, bounds), test_utils=tests)
