"""Low-rank kernels: the reference's bits where ranks must agree, its numbers elsewhere, and only in their places."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from compcomm.compressors.sketch import quantiles
from compcomm.ops import native
from tests.ops.dense_case import same
from tests.ops.sparse_case import using

OPS = torch.ops.compcomm
BACKENDS = ("reference", *native.isas())
SHAPES = ((1, 1, 1), (7, 5, 2), (16, 16, 4), (5, 33, 3), (70, 9, 8), (3, 2100, 1), (33, 1040, 6), (9, 4099, 4))
GAP = 3  # unused numbers between the matrices, and between their factors
POISON = 1e30


class Case(NamedTuple):
    """Matrices and factors with gaps, all beginning at an odd place; every third one has no place in ``out``."""

    table: Tensor
    lines: dict[str, Tensor]
    residual: Tensor
    gradient: Tensor
    p: Tensor
    q: Tensor

    def matrix(self, flat: Tensor, r: int, column: int = 0) -> Tensor:
        a = self.table[r].tolist()
        return flat[a[column] :][: a[2] * a[3]].view(a[2], a[3])

    def factor(self, name: str, flat: Tensor, r: int) -> Tensor:
        x, _, numel, _, _, _, k, _ = self.lines[name][r].tolist()
        return flat[x : x + k * numel].view(k, numel)


def case(shapes: tuple[tuple[int, int, int], ...] = SHAPES, seed: int = 0) -> Case:
    g = torch.Generator().manual_seed(seed)
    table: list[list[int]] = []
    lines: dict[str, list[list[int]]] = {"p": [], "q": []}
    at, p, q = 1, 1, 1
    for i, (n, m, r) in enumerate(shapes):
        table.append([at, at + 2, n, m, r, p, q, i])
        lines["p"].append([p, -1, n, 0, 0, 12345 * i - 7, r, 0])
        lines["q"].append([q, -1, m, 0, 0, 12345 * i - 7, r, 0])
        at, p, q = at + n * m + GAP, p + n * r + GAP, q + m * r + GAP
    made = [torch.randn(n, generator=g) for n in (at, at + 2, p, q)]
    tables = {name: torch.tensor(rows) for name, rows in lines.items()}
    found = Case(torch.tensor(table), tables, *made)
    for flat, places in ((found.residual, [(a[0], a[2] * a[3]) for a in table]),
                         (found.gradient, [(a[1], a[2] * a[3]) for a in table]),
                         (found.p, [(a[5], a[2] * a[4]) for a in table]),
                         (found.q, [(a[6], a[3] * a[4]) for a in table])):  # fmt: skip
        outside = torch.ones(flat.numel(), dtype=torch.bool)  # all between is poison: whatever reads it is found out
        for start, count in places:
            outside[start : start + count] = False
        flat[outside] = POISON
    return found


def product(backend: str, name: str, c: Case, gradient: bool = True, scale: float = 0.5) -> dict[str, Tensor]:
    found = {"residual": c.residual.clone(), "p": c.p.clone(), "q": c.q.clone()}
    found["status"] = torch.zeros(1 + len(c.table), dtype=torch.uint8)
    with using(backend):
        op = getattr(OPS, f"lowrank_{name}")
        op(found["residual"], c.gradient if gradient else None, found["p"], found["q"], c.table, found["status"], scale)
    return found


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("name", ["project", "backproject"])
def test_products(name: str, gradient: bool, backend: str) -> None:
    """Against fp64 of every matrix by itself; the residual to the bit; nothing else is touched."""
    c = case()
    found = product(backend, name, c, gradient)
    made, kept = ("p", "q") if name == "project" else ("q", "p")
    assert same(found[kept], getattr(c, kept))
    outside = {n: getattr(c, n) == POISON for n in ("residual", made)}
    assert all((found[n][mask] == POISON).all() for n, mask in outside.items())
    for r in range(len(c.table)):
        m = c.matrix(c.residual, r)
        if gradient:
            m = m + c.matrix(c.gradient, r, 1) * 0.5
        assert same(c.matrix(found["residual"], r), m)
        p, q = c.factor("p", c.p, r).double(), c.factor("q", c.q, r).double()
        due, size = (q @ m.double().T, q.abs() @ m.double().abs().T) if name == "project" else (
            p @ m.double(), p.abs() @ m.double().abs()
        )  # fmt: skip
        assert ((c.factor(made, found[made], r) - due).abs() <= 1e-6 * size).all(), c.table[r]
    assert found["status"].tolist() == [0] + [int(gradient)] * len(c.table)


@pytest.mark.parametrize("name", ["project", "backproject"])
def test_products_are_the_same_on_all_instruction_sets(name: str) -> None:
    c = case()
    results = [product(isa, name, c) for isa in native.isas()]
    assert all(same(results[0][n], other[n]) for other in results for n in results[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["project", "backproject"])
def test_what_is_not_finite_stays_out(name: str, backend: str) -> None:
    c = case()
    places = [int(a[1]) + int(a[2] * a[3]) - 1 for a in c.table]
    c.gradient[places[1]], c.gradient[places[4]] = float("inf"), float("nan")
    c.matrix(c.gradient, 2, 1).zero_()
    before = [float(c.matrix(c.residual, r)[-1, -1]) for r in (1, 4)]
    found = product(backend, name, c)
    assert [float(c.matrix(found["residual"], r)[-1, -1]) for r in (1, 4)] == before
    assert all(found[n].isfinite().all() for n in ("residual", "p", "q"))
    assert found["status"].tolist() == [1, *(int(r != 2) for r in range(len(c.table)))]


def reconstruct(
    backend: str, c: Case, out: Tensor | None, accumulate: bool, own: tuple[Tensor, Tensor] | None, skip: Tensor
) -> tuple[Tensor, Tensor | None]:
    residual, out = c.residual.clone(), None if out is None else out.clone()
    p, q = own or (c.p, c.q)
    with using(backend):
        OPS.lowrank_reconstruct(
            residual, out, c.p, c.q, p, q, c.table, skip, 0.7, accumulate, 1.0 if out is not None else -1.0
        )
    return residual, out


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("other", [False, True])
@pytest.mark.parametrize("write", [False, True])
def test_reconstruction_has_the_bits_of_the_reference(accumulate: bool, other: bool, write: bool) -> None:
    c = case()
    c.table[::3, 1] = -1
    skip = torch.tensor([0, 1, 0, 0, 1, 0, 0, 0], dtype=torch.uint8)
    own = (c.p * 1.5, c.q.flip(0)) if other else None
    out = torch.full_like(c.gradient, 9.0) if write else None
    due, mean = reconstruct("reference", c, out, accumulate, own, skip)
    for r in range(len(c.table)):
        p, q = (c.factor(n, flat, r).double() for n, flat in zip("pq", own or (c.p, c.q), strict=True))
        change = (c.matrix(due, r) - c.matrix(c.residual, r)) * (-1.0 if write else 1.0)
        right = change == 0 if skip[r] else (change - p.T @ q).abs() <= 1e-5 * (1 + p.abs().T @ q.abs())
        assert right.all(), c.table[r]
    assert (due[c.residual == POISON] == POISON).all()
    if mean is not None:
        touched = torch.zeros_like(mean, dtype=torch.bool)
        for r, a in enumerate(c.table.tolist()):
            if a[1] >= 0:
                touched[a[1] : a[1] + a[2] * a[3]] = True
                if skip[r]:
                    assert (c.matrix(mean, r, 1) == (9.0 if accumulate else 0.0)).all()
        assert (mean[~touched] == 9.0).all()
    for isa in native.isas():
        found, result = reconstruct(isa, c, out, accumulate, own, skip)
        assert same(found, due), isa
        assert (result is None and mean is None) or same(result, mean), isa


def orthonormal(backend: str, factor: Tensor, table: Tensor) -> Tensor:
    factor = factor.clone()
    with using(backend):
        OPS.lowrank_orthonormal(factor, table)
    return factor


@pytest.mark.parametrize("name", ["p", "q"])
def test_gram_schmidt(name: str) -> None:
    """Orthonormal lines with the span of the given ones; a repeated or zero line becomes zero; the reference's bits."""
    c = case()
    flat, table = getattr(c, name), c.lines[name]
    for r, scale in ((1, 1e-30), (2, 1e15), (3, 1e-44)):
        c.factor(name, flat, r).mul_(scale)
    c.factor(name, flat, 5).zero_()
    wide = c.factor(name, flat, 4)
    wide[3], wide[5] = 0.0, 2 * wide[0] - 0.5 * wide[1]
    due = orthonormal("reference", flat, table)
    assert (due[flat == POISON] == POISON).all() and due.isfinite().all()
    for r in range(len(table)):
        q = c.factor(name, due, r).double()
        gram = q @ q.T
        kept = gram.diagonal() > 0.5
        off = 2e-2 if r == 3 else 1e-6  # of numbers of a few bits
        assert (gram - torch.diag(kept.double())).abs().max() < off, table[r]
        given = c.factor(name, flat, r).double()
        given = given / given.norm(dim=1, keepdim=True).clamp_min(1e-300)
        assert (given - given @ q.T @ q).abs().max() < off, "the span is another"
        assert kept.sum() <= min(len(q), q.shape[1])
    zeros = [int((~c.factor(name, due, r).any(1)).sum()) for r in range(len(table))]
    assert zeros[5] == len(c.factor(name, due, 5)) and zeros[4] >= 2 and zeros[0] == zeros[1] == zeros[2] == 0
    for isa in native.isas():
        assert same(orthonormal(isa, flat, table), due), isa


@pytest.mark.parametrize("name", ["p", "q"])
def test_fresh_lines(name: str) -> None:
    """Zero lines alone are drawn: normal, others for another step, line or parameter, the same on every backend."""
    c = case()
    flat, table = getattr(c, name).clone(), c.lines[name]
    for r in (4, 6, 7):
        c.factor(name, flat, r)[1:3].zero_()
    results: list[Tensor] = []
    for backend in BACKENDS:
        found = flat.clone()
        with using(backend):
            OPS.lowrank_refresh(found, table, quantiles(), 70_000)
        results.append(found)
        assert same(found, results[0]), backend
    changed = results[0] != flat
    assert int(changed.sum()) == sum(2 * c.factor(name, flat, r).shape[1] for r in (4, 6, 7))
    fresh = [c.factor(name, results[0], r)[k] for r in (4, 6, 7) for k in (1, 2)]
    drawn = torch.cat(fresh)
    assert abs(float(drawn.mean())) < 5 / len(drawn) ** 0.5 and float(drawn.std()) == pytest.approx(1, abs=0.3)
    short = min(map(len, fresh))
    assert len({tuple(f[:short].tolist()) for f in fresh}) == len(fresh)
    later = flat.clone()
    OPS.lowrank_refresh(later, table, quantiles(), 70_001)
    assert not torch.equal(later, results[0])


@pytest.mark.parametrize("backend", ["reference", *native.isas()[-1:]])
def test_wrong_arguments(backend: str) -> None:
    c = case(((7, 5, 2), (16, 20, 4)))
    status, skip = torch.zeros(3, dtype=torch.uint8), torch.zeros(2, dtype=torch.uint8)
    tails: dict[str, Any] = {
        "project": lambda t: (c.residual, c.gradient, c.p, c.q, t, status, 1.0),
        "backproject": lambda t: (c.residual, c.gradient, c.p, c.q, t, status, 1.0),
        "reconstruct": lambda t: (c.residual, c.gradient, c.p, c.q, c.p, c.q, t, skip, 1.0, True, 1.0),
        "orthonormal": lambda t: (c.p, t),
        "refresh": lambda t: (c.p, t, quantiles(), 3),
    }
    broken = ((0, 10**6, "outside"), (0, -1, "outside"), (2, 0, "1 or more"), (2, 10**7, "outside"))
    matrices = ((1, -2, "outside"), (3, 1 << 41, "1 or more"), (4, 0, "1 or more"), (4, 99, "outside"),
                (5, 10**6, "outside p"), (6, -5, "outside q"), (7, 9, "entries"), (7, -1, "entries"))  # fmt: skip
    for name, arguments in tails.items():
        op, whole = getattr(OPS, f"lowrank_{name}"), name not in ("orthonormal", "refresh")
        good = c.table if whole else c.lines["p"]
        for column, value, reason in (*broken, *(matrices if whole else ((6, 0, "1 or more"), (6, 99, "outside")))):
            table = good.clone()
            table[1, column] = value
            with using(backend), pytest.raises(ValueError, match=rf"compcomm\.lowrank_{name}: table row 1.*{reason}"):
                op(*arguments(table))
        with using(backend), pytest.raises(ValueError, match="eight columns"):
            op(*arguments(good[:, :7]))
    with pytest.raises(ValueError, match="quantiles has 7 elements"):
        OPS.lowrank_refresh(c.p, c.lines["p"], torch.zeros(7), 3)
    with pytest.raises(ValueError, match="q_sent has 3 elements"):
        OPS.lowrank_reconstruct(c.residual, None, c.p, c.q, c.p, c.q[:3], c.table, skip, 1.0, False, 1.0)
    with pytest.raises(TypeError, match=r"residual is torch\.float64"):
        OPS.lowrank_project(c.residual.double(), None, c.p, c.q, c.table, status, 1.0)
