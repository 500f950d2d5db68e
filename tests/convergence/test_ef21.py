"""EF21 and its kin in double precision: the published identities, the rates, weights, absence, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import sqrt
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import compcomm as cc
from tests.reference.ef21_double import EF21 as Page

WORLD, D = 5, 24
TOP = cc.TopK(k=2, dense_below=0)
ALL = cc.TopK(ratio=1.0, dense_below=0)
F64 = torch.float64
LAYOUT = cc.Layout.of([("w", (1, D))])


class Problem:
    """f_i(x) = |A_i x - b_i|^2/(2 N), worker 0 with a Hessian ten times as large."""

    def __init__(self, seed: int = 0, world: int = WORLD) -> None:
        rng = np.random.default_rng(seed)
        a = rng.normal(size=(world, 40, D))
        a[0] *= sqrt(10)
        self.features = torch.from_numpy(a)
        b = torch.from_numpy(rng.normal(size=(world, 40)))
        self.h, self.c = self.features.mT @ self.features / 40, torch.einsum("wnd,wn->wd", self.features, b) / 40
        self.smooth = cc.smoothness(self.features.flatten(0, 1), "least-squares")
        self.each = [cc.smoothness(f, "least-squares") for f in self.features]

    def gradients(self, x: Tensor) -> Tensor:
        return self.h @ x - self.c

    def rate(self, delta: float) -> float:
        """1/(L + L_AM xi)."""
        xi = sqrt(1 - delta) / (1 - sqrt(1 - delta)) if delta < 1 else 0.0
        return 1 / (self.smooth + sum(self.each) / len(self.each) * xi)


def gap(x: Tensor, y: Tensor) -> float:
    return float((x - y).abs().max())


def step(simulator: cc.Simulator, gradients: Tensor, present: Sequence[int] | None = None) -> Tensor:
    return simulator.step([[cc.Bucket(g.clone(), LAYOUT)] for g in gradients], present=present)[0][0].flat


def slot(simulator: cc.Simulator, name: str) -> Tensor:
    return torch.stack([s.state_dict()[name]["w"] for s in simulator.stores])


@cache
def path(reducer: Any, steps: int = 60, rate: float | None = None, present: Any = None) -> tuple[Tensor, cc.Simulator]:
    """All x of a descent, and the simulator at its end; several tests look at the same one."""
    problem, simulator = Problem(), cc.Simulator(reducer, WORLD)
    x, found = torch.zeros(D, dtype=F64), []
    for t in range(steps):
        x = x - (rate or problem.rate(2 / D)) * step(simulator, problem.gradients(x), present and present(t))
        found.append(x)
    return torch.stack(found), simulator


def ef21(inner: Any = TOP, **more: Any) -> cc.EF21:
    return cc.EF21(inner, dtype=F64, **more)


def page(steps: int = 60, present: Any = None, k: int = 2, **more: Any) -> Tensor:
    """The same descent by the NumPy page, with its Top-k in fp32 as on the wire."""

    def top(y: np.ndarray, rank: int, t: int) -> np.ndarray:
        y = y.astype(np.float32)
        kept = np.zeros_like(y)
        places = np.argsort(-abs(y), kind="stable")[:k]
        kept[places] = y[places]
        return kept.astype(np.float64)

    problem, scheme = Problem(), Page(WORLD, top, **more)
    x, found = torch.zeros(D, dtype=F64), []
    for t in range(steps):
        gradients = list(problem.gradients(x).numpy())
        x = x - problem.rate(2 / D) * torch.from_numpy(scheme.step(gradients, t, present and present(t)))
        found.append(x)
    return torch.stack(found)


WEIGHTS = cc.smoothness_weights(Problem().features, "least-squares")
SOME: Any = lambda t: None if t == 0 else [r for r in range(WORLD) if (t * 7 + r * 3) % 5 < 3]  # noqa: E731


@pytest.mark.turns(2)
@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"start": False}, {"momentum": 0.2}, {"weights": WEIGHTS}, {"weights": WEIGHTS, "momentum": 0.5}],
    ids=str,
)
@pytest.mark.parametrize("present", [None, SOME], ids=["all", "some"])
def test_equals_the_page(options: dict[str, Any], present: Any) -> None:
    if present is not None and not options.get("start", True):
        present = None
    assert gap(path(ef21(**options), present=present)[0], page(present=present, **options)) < 1e-12


def test_mean_is_the_mean_of_the_estimates_and_their_distortion_falls_every_step() -> None:
    """m = mean h at all times; |h_new - g|^2 <= (1 - delta)|h_old - g|^2, g the new gradient."""
    problem, simulator, x = Problem(), cc.Simulator(ef21(), WORLD), torch.zeros(D, dtype=F64)
    for t in range(100):
        g = problem.gradients(x)
        old = slot(simulator, "estimate") if t else g
        m = step(simulator, g)
        h = slot(simulator, "estimate")
        assert gap(m, h.mean(0)) < 1e-14 and gap(slot(simulator, "mean"), m.expand(WORLD, -1)) == 0.0
        assert ((h - g).square().sum(1) <= (1 - 2 / D) * (old - g).square().sum(1) * (1 + 1e-6) + 1e-24).all()
        x = x - problem.rate(2 / D) * m


def test_sending_everything_is_gradient_descent_whatever_the_weights() -> None:
    problem = Problem()
    x, due = torch.zeros(D, dtype=F64), []
    for _ in range(100):
        x = x - problem.rate(1.0) * problem.gradients(x).mean(0)
        due.append(x)
    for options in ({}, {"start": False}, {"weights": WEIGHTS}):
        found, _ = path(ef21(ALL, **options), 100, problem.rate(1.0))
        assert gap(found, torch.stack(due)) < 2e-7, options  # fp32 on the wire
        assert gap(found[-1:], torch.stack(due[-1:])) < 1e-9, options


@pytest.mark.slow
def test_momentum_one_is_none_and_with_everything_sent_it_is_a_moving_average() -> None:
    assert gap(path(ef21(momentum=1.0))[0], path(ef21())[0]) == 0.0
    problem, v, x = Problem(), torch.zeros(D, dtype=F64), torch.zeros(D, dtype=F64)
    found, _ = path(ef21(ALL, momentum=0.1))
    for t in range(60):
        g = problem.gradients(x).mean(0)
        v = g if t == 0 else 0.9 * v + 0.1 * g
        x = x - problem.rate(2 / D) * v
        assert gap(found[t], x) < 1e-7


@pytest.mark.slow
def test_owners_that_lose_nothing_change_nothing_and_others_still_converge() -> None:
    """EF21-BC is EF21 on the way back too; rounding of fp32 payloads is all that the identity leaves."""
    assert gap(path(ef21(cc.TwoPhase(ALL, server=cc.EF21)), 60)[0], path(ef21(ALL), 60)[0]) < 1e-6
    problem = Problem()
    best = torch.linalg.solve(problem.h.mean(0), problem.c.mean(0))
    found, _ = path(ef21(cc.TwoPhase(cc.TopK(k=1, dense_below=0), server=cc.EF21)), 250, 5 * problem.rate(2 / D))
    assert float((found[-1] - best).norm()) < 1e-2 * float(best.norm())


def test_who_is_away_sends_nothing_and_keeps_its_estimate() -> None:
    problem, simulator, x = Problem(), cc.Simulator(ef21(), WORLD), torch.zeros(D, dtype=F64)
    x = x - problem.rate(2 / D) * step(simulator, problem.gradients(x))
    for t in range(1, 20):
        here = SOME(t)
        before, sent = slot(simulator, "estimate"), list(simulator.sent)
        m = step(simulator, problem.gradients(x), here)
        after = slot(simulator, "estimate")
        for rank in range(WORLD):
            same = torch.equal(before[rank], after[rank])
            assert (rank in here) != same and (rank in here) == (simulator.sent[rank] > sent[rank])
        assert gap(m, after.mean(0)) < 1e-14
        x = x - 0.1 * problem.rate(2 / D) * m


@pytest.mark.slow
def test_everyone_present_is_ef21_and_half_of_them_converge() -> None:
    assert gap(path(ef21(), present=lambda t: range(WORLD))[0], path(ef21())[0]) == 0.0
    rng, problem = np.random.default_rng(0), Problem()
    best = torch.linalg.solve(problem.h.mean(0), problem.c.mean(0))
    found, _ = path(
        ef21(),
        500,
        6 * problem.rate(2 / D),
        present=lambda t: None if t == 0 else np.flatnonzero(rng.random(WORLD) < 0.5).tolist(),
    )
    assert float((found[-1] - best).norm()) < 1e-5 * float(best.norm())


@pytest.mark.slow
def test_the_path_to_the_last_digit() -> None:
    """C(a x) = a C(x): EF21-W is EF21, h_i apart by the factor W w_i. Four workers, weights 1/2, 1/4, 1/8, 1/8: W w are
    powers of two, and the paths agree to 1e-12."""
    problem, weights = Problem(1, 4), (0.5, 0.25, 0.125, 0.125)
    ends, estimates = [], []
    for given in (None, weights, (0.25,) * 4):
        simulator, x = cc.Simulator(ef21(weights=given), 4), torch.zeros(D, dtype=F64)
        for _ in range(60):
            x = x - problem.rate(2 / D) * step(simulator, problem.gradients(x))
        ends.append(x)
        estimates.append(slot(simulator, "estimate"))
    assert gap(ends[0], ends[1]) < 1e-12 and gap(ends[0], ends[2]) < 1e-13
    assert gap(estimates[0], estimates[1] * 4 * torch.tensor(weights, dtype=F64).view(-1, 1)) < 1e-11


@pytest.mark.turns(2)
@pytest.mark.slow
@pytest.mark.parametrize(
    "inner", [cc.Natural(dense_below=0), cc.MinMax(3, "nearest", block=16, dense_below=0)], ids=repr
)
def test_other_compressors_take_another_path_to_the_same_place(inner: cc.Compressor) -> None:
    problem = Problem()
    best = torch.linalg.solve(problem.h.mean(0), problem.c.mean(0))
    plain = path(ef21(cc.AllGather(inner)), 60, 2 * problem.rate(0.5))[0]
    weighted = path(ef21(cc.AllGather(inner), weights=WEIGHTS), 300, 2 * problem.rate(0.5))[0]
    if isinstance(inner, cc.Natural):
        assert gap(plain, weighted[:60]) > 1e-6
    assert float((weighted[-1] - best).norm()) < 1e-6 * float(best.norm())


ROUTES = [
    cc.AllGather(TOP),
    cc.AllReduce(cc.RandK(ratio=0.25, dense_below=0)),
    cc.TwoPhase(cc.QSGD(bits=8, rounding="nearest", block=16, dense_below=0)),
    cc.SparseAllReduce(cc.TopK(ratio=0.25, dense_below=0)),
]


@pytest.mark.parametrize("route", ROUTES, ids=repr)
def test_every_route_sums_with_the_weights(route: cc.Reducer) -> None:
    """The mean that is delivered, and the owners' residuals, are sum w h: with the plain mean this fails."""
    if not route.traits.weights:
        with pytest.raises(ValueError, match="takes no weights"):
            cc.settle(ef21(route, weights=WEIGHTS), WORLD)
        return
    problem, simulator, x = Problem(), cc.Simulator(cc.EF21(route, weights=WEIGHTS), WORLD), torch.zeros(D, dtype=F64)
    w = torch.tensor(WEIGHTS)
    for _ in range(30):
        m = step(simulator, problem.gradients(x).float())
        h = slot(simulator, "estimate")
        if "server" not in simulator.stores[0].state_dict():  # owners owe nothing
            assert gap(m, w @ h) < 1e-5
        x = x - problem.rate(0.25) * m
    assert gap(m, w @ h) < 0.02 < gap(m, h.mean(0))


@pytest.mark.parametrize("options", [{}, {"weights": WEIGHTS}, {"momentum": 0.5}], ids=str)
def test_a_bad_step_is_undone(options: dict[str, Any]) -> None:
    problem = Problem()
    for inner in (TOP, cc.TwoPhase(cc.QSGD(bits=8, rounding="nearest", block=16, dense_below=0))):
        simulator, x = cc.Simulator(ef21(inner, **options), WORLD), torch.zeros(D, dtype=F64)
        for _ in range(5):
            x = x - problem.rate(2 / D) * step(simulator, problem.gradients(x))
        kept = ("estimate", "mean")
        before = [slot(simulator, name) for name in kept]
        bad = problem.gradients(x)
        bad[2, 7] = float("inf")
        assert step(simulator, bad).isnan().all() and simulator.bad
        for name, old in zip(kept, before, strict=True):
            assert gap(slot(simulator, name), old) < 1e-6, name
        step(simulator, problem.gradients(x))
        assert not simulator.bad
