"""Norms of rows: kernels equal the reference to the bit, and that the number that it names."""

from __future__ import annotations

import pytest
import torch

from compcomm.ops import native
from tests.ops.sparse_case import IMPLEMENTATIONS, KINDS, make, same, using

OPS = torch.ops.compcomm
SIZES = (1, 15, 0, 16, 17, 5000, 20_011)
TABLE = torch.tensor([(0, 3 + sum(SIZES[:i]) + 2 * i, n, i) for i, n in enumerate(SIZES)])
NUMEL = 5 + sum(SIZES) + 2 * len(SIZES)


def norms(implementation: str, x: torch.Tensor, table: torch.Tensor = TABLE) -> torch.Tensor:
    found = torch.full((len(table),), -1.0, dtype=torch.float64)
    with using(implementation):
        OPS.norms(x, table, found)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_equal_the_reference(kind: str) -> None:
    x = make(kind, NUMEL, 1)
    truth = norms("reference", x)
    for implementation in native.isas():
        assert same(norms(implementation, x), truth), implementation


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", ["normal", "huge", "denormal", "nonfinite"])
def test_it_is_the_norm(implementation: str, kind: str) -> None:
    x = make(kind, NUMEL, 2)
    for (_, start, numel, _), found in zip(TABLE.tolist(), norms(implementation, x).tolist(), strict=True):
        row = x[start : start + numel].double()
        assert found == pytest.approx(float(torch.where(row.isfinite(), row, 0.0).norm()), rel=1e-12, abs=0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_rows_outside_are_refused(implementation: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match="row 1"):
        norms(implementation, torch.zeros(20), torch.tensor([(0, 0, 20, 0), (0, 10, 11, 1)]))


def test_arguments() -> None:
    x, out = torch.zeros(20), torch.zeros(1, dtype=torch.float64)
    table = torch.tensor([(0, 0, 20, 0)])
    with pytest.raises(TypeError, match="norms: out"):
        OPS.norms(x, table, out.float())
    with pytest.raises(ValueError, match="norms: out"):
        OPS.norms(x, table, torch.zeros(2, dtype=torch.float64))
    with pytest.raises(ValueError, match="norms: table"):
        OPS.norms(x, table.int(), out)
