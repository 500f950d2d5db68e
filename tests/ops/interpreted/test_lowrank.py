"""PowerSGD on GPU kernels: the reference's bits where ranks must agree, its numbers elsewhere, only in their places."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compcomm.compressors.sketch import quantiles
from tests.ops.dense_case import same
from tests.ops.interpreted.agreement import backends, full
from tests.ops.sparse_case import agree, using
from tests.ops.test_lowrank import POISON, Case, case, orthonormal, product, reconstruct

OPS = torch.ops.compcomm
SHAPES = ((1, 1, 1), (7, 5, 2), (16, 64, 3), (70, 9, 8), (3, 600, 1), (65, 257, 2), (2100, 2, 1))  # 2100: 33 shares
FEW = ((7, 5, 2), (5, 33, 3), (3, 260, 1))
LENGTHS = (
    (1, 1, 1),
    (7, 5, 2),
    (16, 16, 4),
    (40, 9, 7),
    (3, 1100, 1),
    (33, 300, 4),
    (9, 257, 3),
    (255, 256, 2),
    (9, 3, 2),
)


def matrix(c: Case, flat: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor]:
    """(M with its gradient, P, Q) in fp64."""
    return flat.double(), c.factor("p", c.p, r).double(), c.factor("q", c.q, r).double()


@pytest.mark.parametrize(
    ("name", "gradient"),
    [("project", True), ("backproject", False), full("project", False), full("backproject", True)],
)
@pytest.mark.parametrize("backend", backends("lowrank_project", "lowrank_backproject"))
def test_products(backend: str, name: str, gradient: bool) -> None:
    c = case(SHAPES)
    found, due = product(backend, name, c, gradient), product("reference", name, c, gradient)
    made, kept = ("p", "q") if name == "project" else ("q", "p")
    assert all(same(found[n], due[n]) for n in (kept, "residual", "status"))
    assert (found[made][getattr(c, made) == POISON] == POISON).all()
    for r in range(len(c.table)):
        m, p, q = matrix(c, c.matrix(due["residual"], r), r)
        right, size = (q @ m.T, q.abs() @ m.abs().T) if name == "project" else (p @ m, p.abs() @ m.abs())
        assert ((c.factor(made, found[made], r) - right).abs() <= 2.0**-20 * size).all(), c.table[r]


@pytest.mark.parametrize("name", ["project", "backproject"])
@pytest.mark.parametrize("backend", backends("lowrank_project"))
def test_what_is_not_finite_stays_out(backend: str, name: str) -> None:
    """Of gradients in half precision too: the second one."""
    c = case(FEW)
    places = [int(a[1]) + int(a[2] * a[3]) - 1 for a in c.table]
    c.gradient[places[0]], c.gradient[places[2]] = float("inf"), float("nan")
    c.matrix(c.gradient, 1, 1).copy_(-torch.zeros(5, 33))
    c = c._replace(gradient=c.gradient.bfloat16()) if name == "project" else c
    found, due = product(backend, name, c), product("reference", name, c)
    assert all(same(found[n], due[n]) for n in ("residual", "status"))
    assert found["status"].tolist() == [1, 1, 0, 1]
    assert found["p"].isfinite().all() and found["q"].isfinite().all()


@pytest.mark.parametrize("backend", backends("lowrank_project"))
def test_means_in_half_precision(backend: str) -> None:
    c, skip = case(FEW), torch.zeros(len(FEW), dtype=torch.uint8)
    half = c.gradient.bfloat16()
    (x, out), (y, mean) = (reconstruct(b, c, half, True, None, skip) for b in (backend, "reference"))
    assert out is not None and mean is not None and same(x, y)
    assert torch.equal(out[c.gradient != POISON], mean[c.gradient != POISON])


@pytest.mark.parametrize(
    ("write", "other", "accumulate"),
    [
        (True, False, False),
        (True, True, True),
        (False, True, False),
        full(True, True, False),
        full(True, False, True),
        full(False, False, False),
    ],
)
@pytest.mark.parametrize("backend", backends("lowrank_reconstruct"))
def test_reconstruct(backend: str, write: bool, other: bool, accumulate: bool) -> None:
    c = case(SHAPES)
    c.table[::3, 1] = -1
    skip = torch.tensor([0, 1, 0, 0, 1, 0, 0], dtype=torch.uint8)
    own = (c.p * 1.5, c.q.flip(0)) if other else None
    out = torch.full_like(c.gradient, 9.0) if write else None
    (x, found), (y, due) = (reconstruct(b, c, out, accumulate, own, skip) for b in (backend, "reference"))
    assert same(x, y)
    assert found is due is None or (found is not None and due is not None and same(found, due))


@pytest.mark.parametrize("backend", backends("lowrank_orthonormal"))
def test_gram_schmidt(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of one piece and of several (pieces are made short here): small, large, zero, repeated, not finite."""
    if backend == "triton":
        module = pytest.importorskip("compcomm.ops.triton.lowrank_factor")
        monkeypatch.setattr(module, "UNROLLED", 8)
        monkeypatch.setattr(module, "STRIDE", 64)
    c = case(LENGTHS)
    flat, table = c.q, c.lines["q"]
    for r, scale in ((1, 1e-30), (2, 1e15), (6, 1e-44), (7, 0.0)):
        c.factor("q", flat, r).mul_(scale)
    wide = c.factor("q", flat, 3)
    wide[3], wide[5], wide[6] = 0.0, 2 * wide[0] - 0.5 * wide[1], wide[2] + 1e-6 * wide[6]
    c.factor("q", flat, 5)[2, 1], c.factor("q", flat, 8)[0, 0] = torch.nan, torch.inf
    found, due = orthonormal(backend, flat, table), orthonormal("reference", flat, table)
    assert same(found.nan_to_num(7e30), due.nan_to_num(7e30))


@pytest.mark.parametrize("backend", backends("lowrank_refresh"))
def test_fresh_lines(backend: str) -> None:
    c = case(LENGTHS)
    for r in (0, 3, 4, 5):
        c.factor("q", c.q, r)[0:3].zero_()
    c.factor("q", c.q, 5)[1, -1] = 1e-45
    c.factor("q", c.q, 5)[2].neg_()
    agree([backend], "lowrank_refresh", c.q, c.lines["q"], quantiles(), 70_000)


@pytest.mark.parametrize("backend", backends("lowrank_project"))
def test_wrong_arguments(backend: str) -> None:
    c = case(((7, 5, 2), (16, 20, 4)))
    table, lines = c.table.clone(), c.lines["p"].clone()
    table[1, 6], lines[1, 6] = -5, 99
    status = torch.zeros(3, dtype=torch.uint8)
    with using(backend):
        with pytest.raises(ValueError, match=r"lowrank_project: table row 1.*outside q"):
            OPS.lowrank_project(c.residual, c.gradient, c.p, c.q, table, status, 1.0)
        with pytest.raises(ValueError, match=r"lowrank_orthonormal: table row 1.*outside"):
            OPS.lowrank_orthonormal(c.p, lines)
