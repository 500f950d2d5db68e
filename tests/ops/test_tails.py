"""Statistics of magnitudes: kernels equal the reference to the bit, and that the numbers that they name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from compcomm.ops import native
from compcomm.ops.reference.magnitude_stats import log2
from tests.ops.sparse_case import IMPLEMENTATIONS, KINDS, elements, make, same, table_of, using

OPS = torch.ops.compcomm
SIZES = ((1, 16, 511, 512, 5000), (15, 17, 0, 513, 20_011))


def measure(
    implementation: str, x: Tensor, add: Tensor | None, table: Tensor, limits: Tensor, *flags: bool
) -> list[Tensor]:
    """x, status and all statistics of a first pass and of two thresholds after it, the second on the list."""
    left, status = x.clone(), torch.tensor([0, 0, 4, 0], dtype=torch.uint8)
    stats = torch.full((len(table), 5), -7.0, dtype=torch.float64)
    held, found = torch.full_like(x, 9.0), []
    with using(implementation):
        OPS.magnitude_stats(left, add, torch.empty(10**6, dtype=torch.uint8), table, status, 0.9, -0.5, stats, *flags)
        found.append(stats.clone())
        for stage in range(2):
            OPS.tail_stats(left, held, table, limits[stage], stats, stage == 0, flags[0])
            found.append(stats.clone())
            for line, count in zip(table.tolist(), stats[:, 0].tolist(), strict=True):
                found.append(held[line[0] : line[0] + int(count)].clone())
    gaps = torch.ones(len(x), dtype=torch.bool)
    for line in table.tolist():
        gaps[line[0] : line[0] + line[2]] = False
    assert bool((held[gaps] == 9.0).all()), "outside the rows nothing is written"
    return [left, status, *found]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_kernels_equal_the_reference(kind: str, sizes: tuple[int, ...]) -> None:
    table = table_of([(n, 0) for n in sizes])
    x, add = make("normal", elements(table), 1), make(kind, elements(table), 2)
    limits = torch.tensor([[0.3], [1.0]]).repeat(1, len(table)).contiguous()
    limits[0, 0], limits[1, 1], limits[1, 3] = 1e9, torch.nan, 0.0
    for gradient, squares, logs in ((add, False, False), (None, True, False), (add, False, True), (add, True, True)):
        start = x if gradient is not None else add
        truth = measure("reference", start, gradient, table, limits, squares, logs)
        for implementation in native.isas():
            found = measure(implementation, start, gradient, table, limits, squares, logs)
            assert all(same(a, b) for a, b in zip(truth, found, strict=True)), implementation


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_statistics_are_what_they_are_called(implementation: str) -> None:
    table = table_of([(20_011, 0), (100, 0)])
    x = make("normal", elements(table), 4)
    limits = torch.tensor([[0.5, 0.5], [1.5, torch.nan]])
    _, status, *found = measure(implementation, x, None, table, limits, True, True)
    assert status.tolist() == [0, 1, 5, 0]
    for row, limit in ((0, (-1.0, 0.5, 1.5)), (1, (-1.0, 0.5, 0.5))):
        begin, size = int(table[row, 0]), int(table[row, 2])
        a = (x * 0.9)[begin : begin + size].abs()
        for stage, at in enumerate(limit):
            b = a[a > at].double()
            logs = float(b.log2().sum()) if stage == 0 else 0.0
            due = [float(len(b)), float(b.sum()), float(b.square().sum()), float(b.min()), logs]
            assert found[(0, 1, 4)[stage]][row].tolist() == pytest.approx(due, rel=1e-5)
            if stage:
                assert torch.equal(found[(0, 1, 4)[stage] + 1 + row], a[a > at])


def test_the_logarithm() -> None:
    a = torch.cat(
        [torch.logspace(-37, 38, 100_001, dtype=torch.float64).float(), 2.0 ** torch.arange(-126, 128).float()]
    )
    assert float((log2(a).double() - a.double().log2()).abs().max()) < 1e-5
    assert torch.equal(log2(2.0 ** torch.arange(-126, 128).float()), torch.arange(-126, 128).float())
    assert log2(torch.tensor([0.0, 1e-45])).tolist() == [-126.0, -126.0]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_what_does_not_fit_is_explained(implementation: str) -> None:
    table, x = table_of([(10, 0)], gap=0, add=False), torch.ones(10)
    limit = torch.ones(1)

    def tails(x: Tensor, held: Tensor, stats: Tensor, first: bool) -> Any:
        with using(implementation):
            OPS.tail_stats(x, held, table, limit, stats, first, True)

    stats = torch.zeros(1, 5, dtype=torch.float64)
    for short in ((x[:9], x.clone()), (x, x[:9].clone())):
        with pytest.raises(ValueError, match=r"tail_stats: table row 0: elements 0..10 are outside"):
            tails(*short, stats, True)
    for count in (11.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"tail_stats: table row 0: stats say"):
            tails(x, x.clone(), torch.full((1, 5), count, dtype=torch.float64), False)
    with pytest.raises(ValueError, match=r"stats is torch.float32"):
        tails(x, x.clone(), stats.float(), True)
    with using(implementation), pytest.raises(ValueError, match=r"magnitude_stats: .* outside x"):
        wire = torch.empty(0, dtype=torch.uint8)
        OPS.magnitude_stats(x[:9], None, wire, table, torch.zeros(2, dtype=torch.uint8), 1.0, 1.0, stats, False, False)
