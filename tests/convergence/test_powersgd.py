"""PowerSGD against linear algebra: exact where it can be, the best approximation in the long run, nothing lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import compcomm as cc
from compcomm.testing.traffic import reduce_together
from compcomm.transports.dry_run import plan

FORMS: list[dict[str, Any]] = [{}, {"error": "local"}, {"alternate": True}, {"alternate": True, "error": "local"}]
Named = dict[str, Tensor]


def low_rank(n: int, m: int, r: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(n, r, generator=g, dtype=torch.float64) @ torch.randn(r, m, generator=g).double()).float()


def gradients(world: int, shapes: dict[str, tuple[int, ...]], seed: int = 0) -> list[Named]:
    g = torch.Generator().manual_seed(seed)
    return [{n: torch.randn(s, generator=g) for n, s in shapes.items()} for _ in range(world)]


def mean(given: list[Named], name: str) -> Tensor:
    return torch.stack([g[name] for g in given]).double().mean(0)


def held(simulator: cc.Simulator, name: str) -> list[Tensor]:
    return [s.state_dict()["residual"][name].double() for s in simulator.stores]


def reset(simulator: cc.Simulator) -> None:
    """Drops the residuals: as if there were no feedback."""
    for store in simulator.stores:
        for part in store._home.get("residual", {}).values():
            part.zero_()


def tail(a: Tensor, r: int) -> float:
    return float(np.sqrt((np.linalg.svd(a.double().numpy(), compute_uv=False)[r:] ** 2).sum()))


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("shape", [(12, 9), (9, 12), (8, 8), (5, 3, 2, 2)])
def test_full_rank_is_the_mean(shape: tuple[int, ...], form: dict[str, Any]) -> None:
    """r = min(n, m): the mean in every step; one factor alone can give it only where the other is square."""
    simulator = cc.Simulator(cc.PowerSGD(rank=99, min_ratio=0.01, **form), 3, seed=5)
    n, m = shape[0], torch.Size(shape).numel() // shape[0]
    steps = 3 if n == m or "alternate" not in form else int(m < n)
    for t in range(steps):
        given = gradients(3, {"w": shape}, t)
        assert torch.allclose(simulator.mean(given)[0]["w"].double(), mean(given, "w"), atol=2e-6), t


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("r", [1, 2, 4])
def test_a_mean_of_low_rank_is_exact(r: int, world: int) -> None:
    """Ranks whose own matrices have full rank, and whose mean has rank r: one step from a random Q gives it."""
    given = gradients(world, {"w": (40, 31)})
    due = low_rank(40, 31, r, 1)
    correction = due - mean(given, "w").float()
    for g in given:
        g["w"] += correction
    simulator = cc.Simulator(cc.PowerSGD(rank=r), world)
    found = simulator.mean(given)[0]["w"]
    assert (found - due).norm() <= 1e-5 * due.norm()
    assert sum(held(simulator, "w")).norm() <= 1e-4 * due.norm()


def test_eight_matrices_of_rank_one_and_one_shape() -> None:
    """Each is orthonormalised on its own. Normalising the batch of their P together, as one matrix with eight columns,
    loses all but the common direction."""
    shapes = {f"w{i}": (24, 36) for i in range(8)}
    given = [{n: low_rank(24, 36, 1, 7 * i + 1) * 10.0 ** (i - 4) for i, n in enumerate(shapes)}] * 2
    for reducer in (cc.PowerSGD(rank=1), cc.PowerSGD(rank=4)):
        found = cc.Simulator(reducer, 2).mean(given)[0]
        for n in shapes:
            assert (found[n] - given[0][n]).norm() <= 1e-6 * given[0][n].norm(), n
    together = torch.stack([found[n] for n in shapes])
    assert together.isfinite().all()


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("r", [1, 2, 3])
def test_a_fixed_matrix_is_approximated_as_well_as_any_rank_r_can(r: int, form: dict[str, Any]) -> None:
    """Without feedback (residuals are dropped) the distance falls to the tail of the singular values, by one power
    iteration per step."""
    a = torch.randn(12, 9, generator=torch.Generator().manual_seed(3)) @ torch.diag(0.7 ** torch.arange(9.0))
    simulator = cc.Simulator(cc.PowerSGD(rank=r, min_ratio=0.01, **form), 2)
    found: list[float] = []
    for _ in range(120):
        out = simulator.mean([{"w": a}, {"w": a}])[0]["w"]
        found.append(float((a.double() - out.double()).norm()))
        reset(simulator)
    assert found[0] > found[5] > tail(a, r) * (1 - 1e-6)
    assert found[-1] == pytest.approx(tail(a, r), rel=1e-4)


def test_without_warm_start_it_does_not_come_closer() -> None:
    a = torch.randn(12, 9, generator=torch.Generator().manual_seed(3))
    simulator = cc.Simulator(cc.PowerSGD(rank=2, min_ratio=0.01, warm_start=False), 1)
    found: list[float] = []
    for _ in range(40):
        found.append(float((a - simulator.mean([{"w": a}])[0]["w"]).norm()))
        reset(simulator)
    assert min(found[30:]) > 1.02 * tail(a, 2)
    assert len(set(found)) == len(found), "every step draws anew"


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_both_errors_have_the_same_mean_and_nothing_is_lost(form: dict[str, Any]) -> None:
    """mean E_i = mean M_i - out in the first step; then sum of outs + mean residual = sum of mean gradients."""
    shapes = {"a": (33, 20), "b": (7,), "conv": (16, 8, 3, 3), "c": (20, 33)}
    simulator = cc.Simulator(cc.PowerSGD(rank=2, min_ratio=1, **form), 4)
    applied = {n: torch.zeros(s, dtype=torch.float64) for n, s in shapes.items()}
    due = {n: torch.zeros(s, dtype=torch.float64) for n, s in shapes.items()}
    for t in range(20):
        given = gradients(4, shapes, t)
        out = simulator.mean(given)
        for n in shapes:
            assert all(torch.equal(o[n], out[0][n]) for o in out)
            applied[n] += out[0][n]
            due[n] += mean(given, n)
            rest = due[n] - applied[n]
            if n != "b":
                parts = held(simulator, n)
                assert (torch.stack(parts).mean(0).view(shapes[n]) - rest).abs().max() < 1e-4, (n, t)
                apart = (parts[0] - parts[1]).norm() / parts[0].norm()
                assert apart > 0.1
            else:
                assert rest.abs().max() < 1e-5


def test_the_local_error_of_one_rank_is_its_own() -> None:
    """A rank whose gradient is orthogonal to what is sent keeps it whole: E_i = M_i - P Q_i^T; with the aggregate error
    it takes the others' part out of its own residual."""
    a, b = torch.zeros(8, 9), torch.zeros(8, 9)
    a[0, 0], b[1, 1] = 100.0, 1.0
    for error, left in (("local", 0.0), ("aggregate", -50.0)):
        simulator = cc.Simulator(cc.PowerSGD(rank=1, min_ratio=0.1, error=error), 2)
        for _ in range(6):
            reset(simulator)
            simulator.mean([{"w": a}, {"w": b}])
        own = held(simulator, "w")[1].view(8, 9)
        assert float(own[0, 0]) == pytest.approx(left, abs=0.1) and float(own[1, 1]) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_replicated_state_and_permuted_workers(form: dict[str, Any]) -> None:
    """Q (and P) are equal on all ranks to the bit, and another order of the workers changes nothing but rounding."""
    shapes = {"w": (30, 22), "v": (22, 30)}
    one, two = (cc.Simulator(cc.PowerSGD(rank=3, **form), 4, seed=1) for _ in range(2))
    for t in range(6):
        given = gradients(4, shapes, t)
        a, b = one.mean(given)[0], two.mean([given[i] for i in (2, 0, 3, 1)])[0]
        for n in shapes:
            assert torch.allclose(a[n], b[n], atol=2e-4), (n, t)
    names = ["q", "p"] if form.get("alternate") else ["q"]
    states = [s.state_dict() for s in one.stores]
    for slot in names:
        for n in shapes:
            assert states[0][slot][n].any()
            assert all(torch.equal(states[0][slot][n], other[slot][n]) for other in states)


@pytest.mark.parametrize("form", [*FORMS, {"warm_start": False}], ids=str)
def test_zeros_give_zeros_and_then_it_goes_on(form: dict[str, Any]) -> None:
    simulator = cc.Simulator(cc.PowerSGD(rank=2, **form), 2)
    zero = {"w": torch.zeros(20, 20)}
    for _ in range(3):
        assert not simulator.mean([zero, zero])[0]["w"].any() and not simulator.bad
    w = low_rank(20, 20, 1, 0)
    applied = sum(simulator.mean([{"w": w}, {"w": w}])[0]["w"].double() for _ in range(4))
    assert (applied - 4 * w).norm() <= 1e-5 * w.norm()


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("size", [1e-36, 1e-20, 1e20, 1e33])
def test_gradients_of_any_size(size: float, form: dict[str, Any]) -> None:
    """Powers of two of the gradient are powers of two of everything: no square of it is ever formed in fp32."""
    size = 2.0 ** round(torch.tensor(size).log2().item())
    plain, scaled = (cc.Simulator(cc.PowerSGD(rank=2, **form), 2) for _ in range(2))
    for t in range(4):
        given = gradients(2, {"w": (20, 24)}, t)
        due = plain.mean(given)[0]["w"]
        found = scaled.mean([{"w": g["w"] * size} for g in given])[0]["w"]
        assert not scaled.bad
        torch.testing.assert_close(found.double() / size, due.double(), rtol=1e-3, atol=1e-2)


def test_what_is_compressed() -> None:
    shapes = {
        "matrix": (64, 48),
        "wide": (4, 40),
        "conv": (16, 8, 3, 3),
        "vector": (4096,),
        "scalar": (),
        "row": (1, 99),
    }
    layout = cc.Layout.of(shapes.items())
    found = {s.name: cc.PowerSGD(rank=4).sizes(s) for s in layout.segments}
    assert found == {
        "matrix": (64, 48, 4),
        "wide": None,
        "conv": (16, 72, 4),
        "vector": None,
        "scalar": None,
        "row": None,
    }
    half = {s.name for s in layout.segments if not cc.PowerSGD(rank=6, min_ratio=3, alternate=True).exact(s)}
    assert half == {"matrix", "conv"}
    assert cc.PowerSGD(rank=6, min_ratio=3).exact(layout.segments[2])
    piece = layout.segments[0].piece(0, 100)
    assert cc.PowerSGD(4).exact(piece), "a piece of a matrix is no matrix"
    assert {n for s in layout.segments for n in cc.PowerSGD(4, warm_start=False, alternate=True).slots(s, 2)} == {
        "residual"
    }


@pytest.mark.parametrize("world", [2, 4])
def test_bytes(world: int) -> None:
    """Two all-reduces: flags, exact parameters and P; then Q and a seal. Alternate: one."""
    layout = cc.Layout.of([("w", (64, 48)), ("b", (9,)), ("conv", (16, 8, 3, 3))])
    numbers = 2 + 3 + 9 + 4 * (64 + 16), 1 + 4 * (48 + 72)
    planned = cc.cost(cc.PowerSGD(rank=4), layout, world)
    assert [(p.kind, p.nbytes) for p in planned.collectives] == [("AllReduce", 4 * n) for n in numbers]
    assert planned.sent == sum(2 * (4 * n * (world - 1) // world) for n in numbers)
    planned = cc.cost(cc.PowerSGD(rank=4, alternate=True), layout, world)
    assert [p.nbytes for p in planned.collectives] == [4 * (numbers[0] + {2: 7, 4: 10}[world])]  # 64 + 32 rows' digits


@pytest.mark.parametrize("step", [0, 1, 6, 7])
@pytest.mark.parametrize("error", ["aggregate", "local"])
def test_what_an_alternate_step_sends_follows_from_its_number(step: int, error: str) -> None:
    """P in even steps and Q in odd ones, whatever the data: zeros on one rank and infinities on another."""
    reducer = cc.PowerSGD(rank=3, alternate=True, error=error)
    layout = cc.Layout.of([("w", (64, 48)), ("b", (9,)), ("conv", (16, 8, 3, 3))])
    due = [(p.kind, p.dtype, p.nbytes) for p in plan(reducer, layout, 3, 0, step)]
    digits = 8  # of 64 + 32 rows, twelve to a number
    assert due == [("AllReduce", "float32", 4 * (2 + 3 + 9 + digits + 3 * (64 + 16 if step % 2 == 0 else 48 + 72)))]
    inputs = [cc.Bucket(torch.randn(layout.numel), layout) for _ in range(3)]
    assert all(ran.seen == due and not ran.bad for ran in reduce_together(reducer, inputs, step))
    inputs[0].flat.zero_()
    inputs[2].flat[500] = float("inf")
    for ran in reduce_together(reducer, inputs, step):
        assert ran.seen == due and ran.bad and ran.out.flat.isnan().all()
