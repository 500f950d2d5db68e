"""Memory kernels: the reference's bits under every instruction set, infinities left out, nothing beside the rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compcomm.ops import native
from tests.ops.dense_case import same
from tests.ops.sparse_case import using

OPS = torch.ops.compcomm
SIZES = (1, 15, 16, 17, 0, 100, 1000)
GAP = 3
POISON = 1e30


def slabs(seed: int = 0) -> tuple[Tensor, list[Tensor], Tensor]:
    """A table over rows with gaps between them, and three tensors; the first ones to be written, at an odd place."""
    g = torch.Generator().manual_seed(seed)
    table, at = list[list[int]](), 1
    for i, n in enumerate(SIZES):
        table.append([at + 2, at, n, i])
        at += n + GAP
    flats = [torch.full((at + 2,), POISON) for _ in range(3)]
    for flat, column in zip(flats, (0, 1, 1), strict=True):
        for row in table:
            flat[row[column] : row[column] + row[2]] = torch.randn(row[2], generator=g)
    return torch.tensor(table), flats, torch.zeros(1 + len(SIZES), dtype=torch.uint8)


def spoil(flat: Tensor, table: Tensor, column: int, row: int) -> None:
    at = int(table[row, column])
    flat[at], flat[at + 9], flat[at + 14] = float("inf"), float("nan"), -float("inf")


@pytest.mark.parametrize("bad", [False, True])
@pytest.mark.parametrize("isa", native.isas())
def test_steer(isa: str, bad: bool) -> None:
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for backend in ("reference", isa):
        table, (x, error, estimate), status = slabs()
        if bad:
            spoil(x, table, 0, 3)
        with using(backend):
            OPS.add_correction(x, error, estimate, table, status, 0.3, 7.0)
        found[backend] = (x, status)
    (x, status), (due, due_status) = found[isa], found["reference"]
    assert same(x, due) and torch.equal(status, due_status)
    assert bool(status[0]) == bad and x.isfinite().all()
    table, (before, error, estimate), _ = slabs()
    at, start, n, _ = table[2].tolist()
    by_hand = before[at : at + n] + 7.0 * (0.3 * error[start : start + n] - estimate[start : start + n])
    assert torch.allclose(x[at : at + n], by_hand, rtol=1e-6, atol=1e-6)
    untouched = before == POISON
    assert (x[untouched] == POISON).all()


@pytest.mark.parametrize("alpha", [0.0, 1.0, 0.25])
@pytest.mark.parametrize("isa", native.isas())
def test_blend(isa: str, alpha: float) -> None:
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for backend in ("reference", isa):
        table, (to, source, _), status = slabs()
        spoil(source, table, 1, 3)
        start, n = table[5, 1], table[5, 2]
        source[start : start + n] = 0.0
        with using(backend):
            OPS.axpby(to, source, table, torch.linspace(-1, 2, len(SIZES)), status, alpha)
        found[backend] = (to, status)
    (to, status), (due, due_status) = found[isa], found["reference"]
    assert same(to, due) and torch.equal(status, due_status) and to.isfinite().all()
    assert status.tolist() == [1, 1, 1, 1, 1, 0, 0, 1]


@pytest.mark.parametrize("backend", ["reference", *native.isas()])
def test_alive(backend: str) -> None:
    table, (_, source, _), status = slabs()
    for row in (1, 5):
        start, n = table[row, 1], table[row, 2]
        source[start : start + n] = 0.0
    source[int(table[5, 1]) + 99] = 1e-45
    with using(backend):
        OPS.nonzero_segments(source, table, status)
    assert status.tolist() == [0, 1, 0, 1, 1, 0, 1, 1]


@pytest.mark.parametrize("op", ["add_correction", "axpby", "nonzero_segments"])
@pytest.mark.parametrize("column", range(4))
@pytest.mark.parametrize("value", [-1, 10_000])
def test_rows_outside(op: str, column: int, value: int) -> None:
    if op == "nonzero_segments" and column == 0:
        return  # nothing is written
    table, (x, error, estimate), status = slabs()
    table[3, column] = value
    with pytest.raises(ValueError, match=f"compcomm.{op}: table row 3"):
        if op == "add_correction":
            OPS.add_correction(x, error, estimate, table, status, 0.3, 1.0)
        elif op == "axpby":
            OPS.axpby(x, error, table, torch.ones(len(table)), status, 0.0)
        else:
            OPS.nonzero_segments(x, table, status)


def test_slabs_of_unlike_length() -> None:
    table, (x, error, estimate), status = slabs()
    with pytest.raises(ValueError, match=r"compcomm.add_correction: estimate has"):
        OPS.add_correction(x, error, estimate[:-1], table, status, 0.3, 1.0)
