"""Top-k by a sampled threshold: kernels answer to the reference, and its sample to the rule."""

from __future__ import annotations

import pytest
import torch

from compcomm.ops import native
from compcomm.ops.reference.sampled import plan
from tests.ops.sparse_case import KINDS, OPS, agree, call, elements, encoding, make, table_of, using

SIZES = (1, 2, 17, 64, 100, 1000, 4097, 65537)


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_equal_the_reference(kind: str) -> None:
    for n in SIZES:
        ratios = (0.002, 0.1) if n > 10_000 else (0.0, 0.003, 0.01, 0.1, 0.5, 1.0)
        for number, k in enumerate(sorted({min(n, max(1, round(n * ratio))) for ratio in ratios})):
            table = table_of([(n, k), (0, 0), (min(n, 70), min(n, 7)), (50, 0)])
            x, add = make("nonfinite" if number == 1 else "normal", elements(table), 1), make(kind, elements(table), 2)
            decay, add_scale = ((1.0, 1.0), (0.0, 1.0), (0.9, -0.25))[number % 3]
            args = encoding(table, x, add, 7 * number, 2, decay=decay, add_scale=add_scale)
            agree(native.isas(), "topk_sampled_encode", *args)
            if number == 1:
                agree(native.isas(), "topk_sampled_encode", *encoding(table, add, None, 5, 1, decay=0.5))


@pytest.mark.parametrize(("n", "k"), [(20_000, 200), (100_000, 100), (1000, 100), (5000, 3), (64, 37), (300, 250)])
def test_a_sample_that_misleads(n: int, k: int) -> None:
    """Large elements where the sample of this step looks, and small ones there: too high and too low a threshold."""
    table = table_of([(n, k)], add=False, gap=0)
    stride, _ = plan(n, k)
    noise = make("normal", n)
    for start in range(0, stride, max(1, stride // 4)):
        for step, (inside, outside) in enumerate(((100.0, 1.0), (0.01, 1.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1e-38))):
            y = noise * outside
            y[start::stride] = noise[start::stride] * inside
            agree(native.isas(), "topk_sampled_encode", *encoding(table, y, None, step, 0))


def test_the_sample_is_as_large_as_it_must_be() -> None:
    for n in (1, 3, 100, 101, 1000, 12_345, 1_000_000, 25_600_000):
        for k in {min(k, n) for k in (1, 2, 3, 10, n // 1000 or 1, n // 100 or 1, n // 3 or 1, n)}:
            stride, top = plan(n, k)
            m = max(-(-n // 100), -(-2 * n // k))
            assert stride % 8 == 1 and 1 <= top <= k
            if stride > 1:
                assert n // stride >= m > n // (stride + 8), "no closer than needed"
                assert top == -(-m * k // n) >= 2


def test_a_count_chosen_by_the_caller() -> None:
    """``topk_some_encode``: that many of the largest, the rest of the capacity zero bytes, whatever the bound."""
    table = table_of([(5000, 50), (70_000, 300), (40, 40), (9, 0)])
    add = make("ties", elements(table), 2)
    x, counts = make("normal", elements(table), 1), torch.tensor([13, 300, 0, 0])
    y = x + add[torch.arange(len(add)).add(1).clamp(max=len(add) - 1)]
    for bound in (0.0, 0.1, 2.5, 1e30, float("nan"), -1.0):
        args = encoding(table, x, add, counts, torch.full((4,), bound))
        left, _, wire, *_ = agree(native.isas(), "topk_some_encode", *args)
    sent = torch.zeros_like(x)
    with using("reference"):
        OPS.topk_decode(wire[None], table, torch.zeros(2, dtype=torch.uint8), sent, 1.0, False)
    assert torch.equal((left + sent)[3:5003], y[3:5003])
    assert int((sent[3:5003] != 0).sum()) == 13 and int((sent != 0).sum()) == 313
    begin = int(table[0, 3])
    assert not bool(wire[begin + 4 + 26 : begin + 4 + 100].any() | wire[begin + 104 + 52 : begin + 304].any())
    for wrong in (51, -1):
        counts[0] = wrong
        for name in ("reference", *native.isas()[-1:]):
            with pytest.raises(ValueError, match=rf"topk_some_encode: table row 0: counts is {wrong}, the capacity k"):
                call(name, "topk_some_encode", *args)
