"""Smoothness constants: closed forms, the curvature that is really there, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

import compcomm as cc

RNG = np.random.default_rng(0)
TALL, WIDE = RNG.normal(size=(40, 7)), RNG.normal(size=(5, 30))


@pytest.mark.parametrize("a", [TALL, WIDE], ids=["tall", "wide"])
def test_is_the_largest_singular_value_squared(a: np.ndarray) -> None:
    due = np.linalg.norm(a, 2) ** 2 / len(a)
    assert cc.smoothness(a, "least-squares") == pytest.approx(due, rel=1e-13)
    assert cc.smoothness(a) == pytest.approx(due / 4, rel=1e-13)
    assert cc.smoothness(a, regularization=0.2) == pytest.approx(due / 4 + 0.2, rel=1e-13)


def test_closed_forms() -> None:
    assert cc.smoothness(np.eye(6), "least-squares") == 1 / 6
    assert cc.smoothness(np.full((8, 3), 2.0), "logistic") == pytest.approx(4 * 3 / 4)  # rank 1: |a|^2/4
    assert cc.smoothness(np.zeros((3, 2)), regularization=0.5) == 0.5


@pytest.mark.parametrize("a", [TALL, WIDE], ids=["tall", "wide"])
def test_every_form_of_features_gives_the_same(a: np.ndarray) -> None:
    due = cc.smoothness(a)
    forms: list[Any] = [a.tolist(), torch.from_numpy(a), sparse.csr_matrix(a), sparse.coo_array(a)]
    forms += [torch.from_numpy(a).to_sparse(), torch.from_numpy(a).requires_grad_()]
    for form in forms:
        assert cc.smoothness(form) == pytest.approx(due, rel=1e-13), type(form)
    assert cc.smoothness(torch.from_numpy(a).float()) == pytest.approx(due, rel=1e-6)
    assert cc.smoothness(torch.tensor([[3, 0], [0, 4]])) == 2.0
    assert cc.smoothness(torch.from_numpy(a).bfloat16()) == pytest.approx(due, rel=1e-2)


def test_bounds_the_curvature_of_the_loss_and_is_attained() -> None:
    """|grad f(x) - grad f(y)| <= L |x - y| for logistic regression; near x = 0, along the top direction, equal to L."""
    a, y = torch.from_numpy(TALL), torch.from_numpy(RNG.choice([-1.0, 1.0], size=40))

    def gradient(x: torch.Tensor) -> torch.Tensor:
        return a.T @ (-y * torch.sigmoid(-y * (a @ x))) / 40

    smooth = cc.smoothness(a)
    g = torch.Generator().manual_seed(0)
    for _ in range(50):
        u, v = torch.randn(2, 7, generator=g, dtype=torch.float64)
        assert (gradient(u) - gradient(v)).norm() <= smooth * (u - v).norm()
    top = torch.linalg.svd(a).Vh[0] * 1e-4
    assert float((gradient(top) - gradient(-top)).norm() / (2 * top).norm()) == pytest.approx(smooth, rel=1e-6)


def test_weights_are_shares_of_the_sum() -> None:
    w = cc.smoothness_weights([TALL, WIDE, 3 * TALL], "least-squares")
    constants = [cc.smoothness(a, "least-squares") for a in (TALL, WIDE, 3 * TALL)]
    assert sum(w) == pytest.approx(1.0, abs=1e-15)
    assert w == pytest.approx([c / sum(constants) for c in constants], rel=1e-15)
    assert w[2] == pytest.approx(9 * w[0])
    assert cc.settle(cc.EF21(cc.TopK(k=1), weights=w), 3)
    assert cc.smoothness_weights(iter([TALL] * 4)) == (0.25,) * 4


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: cc.smoothness(TALL, "hinge"), "known are 'logistic' and 'least-squares'"),
        (lambda: cc.smoothness(TALL, regularization=-0.1), "not negative"),
        (lambda: cc.smoothness(TALL, regularization=float("nan")), "not negative"),
        (lambda: cc.smoothness(np.zeros((0, 3))), "a sample per row"),
        (lambda: cc.smoothness(np.zeros((3, 0))), "a sample per row"),
        (lambda: cc.smoothness(np.zeros(3)), "a sample per row"),
        (lambda: cc.smoothness(np.zeros((2, 2))), "all are zero"),
        (lambda: cc.smoothness([[1.0, np.inf]]), "not all are finite"),
        (lambda: cc.smoothness(sparse.csr_matrix([[np.nan, 0.0]])), "not all are finite"),
        (lambda: cc.smoothness_weights([]), "one feature matrix per worker"),
        (lambda: cc.smoothness_weights([TALL, 0 * TALL]), "worker 1: .*all are zero"),
    ],
)
def test_refusals(call: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        call()
