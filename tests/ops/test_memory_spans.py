"""Ops on schemes' memory, row by row: the reference's bits on every instruction set, and nothing beside the rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from compcomm.ops import native
from tests.ops.dense_case import gaps, same
from tests.ops.sparse_case import KINDS, OPS, call, make, using

BACKENDS = ("reference", *native.isas())
LAST = ("reference", *native.isas()[-1:])
SIZES = (1, 0, 15, 16, 17, 31, 33, 512, 1000, 2)
NAN = float("nan")


class Case(NamedTuple):
    """Rows at odd places, in another order on each side, with NaN all around."""

    to: Tensor
    source: Tensor
    table: Tensor
    beta: Tensor

    def row(self, flat: Tensor, r: int) -> Tensor:
        to, start, numel, _ = self.table[r].tolist()
        return flat[to if flat.numel() == self.to.numel() else start :][:numel]

    @property
    def beside(self) -> Tensor:
        """A mask of what no row of ``to`` has."""
        return gaps(sorted((r[0], r[2]) for r in self.table.tolist()), self.to.numel())


def case(kind: str = "normal", dtype: torch.dtype = torch.float32, sizes: tuple[int, ...] = SIZES) -> Case:
    rows: list[list[int]] = []
    to, start = 3, 1
    for r in reversed(range(len(sizes))):
        rows.append([to, 0, sizes[r], len(sizes) - 1 - r])
        to += sizes[r] + 3
    rows.reverse()
    for row in rows:
        row[1] = start
        start += row[2] + 2
    made = Case(
        torch.full((to,), NAN), torch.full((start,), NAN), torch.tensor(rows), torch.linspace(-2, 1.5, len(rows))
    )
    for r in range(len(rows)):
        made.row(made.source, r).copy_(make(kind, sizes[r], r))
        made.row(made.to, r).copy_(make("normal", sizes[r], r + 50))
    return made._replace(to=made.to.to(dtype), source=made.source.to(dtype), beta=made.beta.to(dtype))


def status(c: Case) -> Tensor:
    return torch.zeros(1 + len(c.table), dtype=torch.uint8)


def blended(backend: str, c: Case, alpha: float) -> tuple[Tensor, Tensor]:
    to, *_, found, _ = call(backend, "axpby", c.to, c.source, c.table, c.beta, status(c), alpha)
    return to, found


@pytest.mark.parametrize("alpha", [0.0, 1.0, 0.7, -1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_blend(kind: str, alpha: float) -> None:
    c = case(kind)
    if alpha == 0.0:
        c = c._replace(to=torch.full_like(c.to, NAN))  # written and not read
    due, said = torch.full_like(c.to, NAN), status(c)
    for r in range(len(c.table)):
        x = c.row(c.source, r)
        y = torch.where(x.isfinite(), x, 0.0) * c.beta[r]
        c.row(due, r).copy_(y if alpha == 0.0 else alpha * c.row(c.to, r) + y)
        said[0] |= bool((~x.isfinite()).any())
        said[1 + int(c.table[r, 3])] = bool((x != 0).any())
    reference = blended("reference", c, alpha)
    for backend in BACKENDS:
        to, found = blended(backend, c, alpha)
        assert to[c.beside].isnan().all(), "written beside the rows"
        assert torch.equal(to.nan_to_num(7e30), due.nan_to_num(7e30)) and torch.equal(found, said), backend
        assert same(to[~c.beside], reference[0][~c.beside]), f"{backend} has other bits"


@pytest.mark.parametrize("backend", BACKENDS)
def test_blend_in_double_precision(backend: str) -> None:
    c = case(dtype=torch.float64)
    to, found = blended(backend, c, 0.3)
    for r in range(len(c.table)):
        assert torch.equal(c.row(to, r), 0.3 * c.row(c.to, r) + c.row(c.source, r) * c.beta[r])
    assert to[c.beside].isnan().all()
    assert found.tolist() == [0, *(int(c.table[c.table[:, 3] == i, 2]) > 0 for i in range(len(c.table)))]


@pytest.mark.parametrize("kind", ["normal", "nonfinite", "huge"])
def test_steer(kind: str) -> None:
    """``add_correction``: x + b (a error - estimate), where that is finite."""
    c, other = case(kind), case("normal")
    rows = c.table[:, [1, 0, 2, 3]].contiguous()  # the spoilt side is written
    for backend in BACKENDS:
        args = (c.source, c.to, other.to * 0.5, rows, status(c), 0.3, -7.0)
        (x, *_), (due, *_) = call(backend, "add_correction", *args), call("reference", "add_correction", *args)
        for r in range(len(rows)):
            before = c.row(c.source, r)
            found = before - 7.0 * (0.3 * c.row(c.to, r) - 0.5 * c.row(other.to, r))
            assert same(c.row(x, r), c.row(due, r)) and c.row(x, r).isfinite().all()
            assert torch.allclose(c.row(x, r)[before.isfinite()], found[before.isfinite()], rtol=1e-6, atol=1e-6)
        beside = gaps([(r[1], r[2]) for r in c.table.tolist()], len(x))
        assert x[beside].isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_slab_blended_into_itself(backend: str) -> None:
    c = case()
    table = c.table.clone()
    table[:, 1] = table[:, 0]
    flat = c.to.clone()
    with using(backend):
        OPS.axpby(flat, flat, table, c.beta, status(c), 0.5)
    for r in range(len(table)):
        before = c.row(c.to, r)
        assert same(c.row(flat, r), 0.5 * before + before * c.beta[r])


@pytest.mark.parametrize("backend", BACKENDS)
def test_views_that_begin_anywhere(backend: str) -> None:
    """Slabs that are not aligned, with NaN before and behind."""
    c = case(sizes=(100,))
    for shift in (1, 2, 3):
        whole = torch.full((c.to.numel() + 9,), NAN)
        view = whole[shift : shift + c.to.numel()].copy_(c.to)
        with using(backend):
            OPS.axpby(view, c.source, c.table, c.beta, status(c), 1.0)
        assert same(view[~c.beside], blended("reference", c, 1.0)[0][~c.beside])
        assert whole[:shift].isnan().all() and whole[shift + c.to.numel() :].isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_that_meet_are_treated_in_their_order(backend: str) -> None:
    """The second row of the same place finds what the first has left."""
    flat, source, told = torch.ones(40), torch.full((40,), 2.0), torch.zeros(3, dtype=torch.uint8)
    table, beta = torch.tensor([[0, 0, 30, 0], [10, 10, 30, 1]]), torch.tensor([1.0, 1.0])
    with using(backend):
        OPS.axpby(flat, source, table, beta, told, 0.5)
    assert flat.tolist() == [2.5] * 10 + [3.25] * 20 + [2.5] * 10


@pytest.mark.parametrize("backend", BACKENDS)
def test_status_is_added_to_and_no_rows_are_none(backend: str) -> None:
    c, none = case("zero"), torch.empty((0, 4), dtype=torch.int64)
    told = torch.ones_like(status(c))
    with using(backend):
        OPS.axpby(c.to.clone(), c.source, c.table, c.beta, told, 1.0)
        OPS.nonzero_segments(c.source, c.table, told)
        assert told.all(), "what was said is unsaid"
        to, told = torch.full((3,), NAN), torch.zeros(1, dtype=torch.uint8)
        OPS.axpby(to, torch.empty(0), none, torch.empty(0), told, 1.0)
        OPS.nonzero_segments(torch.empty(0), none, told)
    assert to.isnan().all() and not told.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_alive(kind: str, dtype: torch.dtype) -> None:
    c = case(kind, dtype)
    due = status(c)
    due[1 + c.table[:, 3]] = torch.tensor([bool((c.row(c.source, r) != 0).any()) for r in range(len(c.table))]).byte()
    for backend in BACKENDS:
        assert torch.equal(call(backend, "nonzero_segments", c.source, c.table, status(c))[2], due), backend


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_element_alone_is_life(backend: str) -> None:
    for place in (0, 15, 16, 498, 511):
        x, found = torch.zeros(600), torch.zeros(2, dtype=torch.uint8)
        x[3 + place] = -1e-45
        x[2] = x[3 + 512] = 1.0  # beside the row
        with using(backend):
            OPS.nonzero_segments(x, torch.tensor([[0, 3, 512, 0]]), found)
            assert found.tolist() == [0, 1], place
            x[3 + place] = -0.0
            OPS.nonzero_segments(x, torch.tensor([[0, 3, 512, 0]]), found.zero_())
            assert found.tolist() == [0, 0], place


@pytest.mark.parametrize("backend", LAST)
def test_wrong_tables(backend: str) -> None:
    c = case(sizes=(40, 60))
    calls: dict[str, tuple[Any, ...]] = {
        "axpby": (c.to, c.source, c.table, c.beta, status(c), 1.0),
        "add_correction": (c.to, c.source, c.source, c.table, status(c), 0.3, 1.0),
        "nonzero_segments": (c.source, c.table, status(c)),
    }
    wrong = ((0, -1, "are written"), (0, 10**6, "are written"), (1, -1, "are read"), (1, 10**6, "are read"),
             (2, -1, "are read"), (2, 10**6, "are read"), (3, -1, "index"), (3, 2, "index"))  # fmt: skip
    for op, args in calls.items():
        at = next(i for i, a in enumerate(args) if a is c.table)
        for column, value, reason in wrong if op != "nonzero_segments" else wrong[2:]:
            table = c.table.clone()
            table[1, column] = value
            with pytest.raises(ValueError, match=rf"compcomm\.{op}: table row 1 .*{reason}"):
                call(backend, op, *args[:at], table, *args[at + 1 :])
        for table in (c.table[:, :3], c.table.int(), c.table.view(-1), c.table.t()):
            with pytest.raises(ValueError, match=r"must be contiguous torch.int64 \[rows, 4\]"):
                call(backend, op, *args[:at], table, *args[at + 1 :])


@pytest.mark.parametrize("backend", LAST)
def test_wrong_tensors(backend: str) -> None:
    c, told = case(sizes=(40, 60)), torch.zeros(3, dtype=torch.uint8)
    for op, reason, *args in (
        (
            "axpby",
            "to is torch.float64, but must be torch.float32",
            c.to.double(),
            c.source,
            c.table,
            c.beta,
            told,
            1.0,
        ),
        ("axpby", "beta is torch.float64", c.to, c.source, c.table, c.beta.double(), told, 1.0),
        ("axpby", "beta has 1 elements, but needs 2", c.to, c.source, c.table, c.beta[:1], told, 1.0),
        ("axpby", "status is torch.int64, but must be torch.uint8", c.to, c.source, c.table, c.beta, told.long(), 1.0),
        ("axpby", "source has shape .* flat and contiguous", c.to, c.source[::2], c.table, c.beta, told, 1.0),
        ("axpby", "to has shape .* flat and contiguous", c.to.view(1, -1), c.source, c.table, c.beta, told, 1.0),
        ("nonzero_segments", "status is torch.bool", c.source, c.table, told.bool()),
        ("nonzero_segments", "source has shape .* flat and contiguous", c.source.view(1, -1), c.table, told),
        ("add_correction", "estimate has", c.to, c.source, c.source[:-1], c.table, told, 0.3, 1.0),
    ):
        with pytest.raises((TypeError, ValueError), match=rf"compcomm\.{op}: {reason}"):
            call(backend, op, *args)
