"""1-bit LAMB on one rank: the formulas, the bounds of its ratios, and wrong inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import compcomm as cc
from compcomm.optim import OneBitLamb
from tests.reference import onebit_lamb as page

from .alone import content, drive, flat, give, gradients, make, module, moments, parameters
from .saved import ours


def onebit(params: Any, **options: Any) -> OneBitLamb:
    return make("OneBitLamb", params, **{"freeze": 5, "betas": (0.9, 0.999), **options})


def lamb(params: list[Tensor], steps: range, lr: float, decay: float, limits: tuple[float, float]) -> list[float]:
    """You et al. 2020 (arXiv:1904.00962), Algorithm 2, without bias correction, in fp64; the last ratios."""
    m, v, ratios = [torch.zeros(p.shape).double() for p in params], [torch.zeros(p.shape).double() for p in params], []
    for step in steps:
        ratios = []
        for i, (p, g) in enumerate(zip(params, gradients(step), strict=True)):
            m[i] = 0.9 * m[i] + 0.1 * g
            v[i] = 0.999 * v[i] + 0.001 * g.double() ** 2
            r = m[i] / (v[i].sqrt() + 1e-8) + decay * p
            ratios.append(float((p.norm() / r.norm()).clamp(*limits)))
            p -= lr * ratios[-1] * r
    return ratios


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("v_floor", [0.1, 0.0])
def test_the_page(decay: float, v_floor: float) -> None:
    params = parameters()
    own = onebit(params, weight_decay=decay, v_floor=v_floor, betas=(0.9, 0.95))
    x, sizes = flat(params).numpy().copy(), [p.numel() for p in params]
    due = page.OneBitLamb(
        x, sizes, lambda inputs: inputs[0], 5, 0.01, betas=(0.9, 0.95), decay=decay, v_floor=v_floor
    )  # fmt: skip
    for step in range(40):
        drive(own, params, range(step, step + 1))
        due.step([flat(gradients(step)).numpy()])
        assert np.allclose(flat(params).numpy(), due.x, rtol=1e-5, atol=1e-6), step
        assert np.allclose(list(own.coefficients.values()), due.c, rtol=1e-4), step
        assert np.allclose(content(own)["trust"]["factor"], due.phi, rtol=1e-4), step
    assert own.frozen_at == 5
    assert np.allclose(moments(own, "exp_avg_sq"), due.w, rtol=1e-4)
    assert np.allclose(moments(own, "denominator"), due.d, rtol=1e-6)
    assert np.allclose(content(own)["scaling"], [due.scale[cut.start] for cut in due.cuts])


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("limits", [(0.01, 10.0), (0.3, 0.35)])
def test_with_no_freeze_it_is_lamb(decay: float, limits: tuple[float, float]) -> None:
    params = parameters()
    other = [p.detach().double().clone() for p in params]
    own = onebit(params, freeze=1000, weight_decay=decay, min_coeff=limits[0], max_coeff=limits[1])
    drive(own, params, range(20))
    ratios = lamb(other, range(20), 0.01, decay, limits)
    torch.testing.assert_close(flat(params).double(), flat(other), rtol=1e-5, atol=1e-6)
    assert list(own.coefficients.values()) == pytest.approx(ratios, rel=1e-5)


def test_the_mean_ratio() -> None:
    """It begins with the first ratio that is not 1, and is frozen with the variance."""
    params = parameters()
    own = onebit(params, coeff_beta=0.8)
    mean: list[float] = []
    for step in range(5):
        drive(own, params, range(step, step + 1))
        c = list(own.coefficients.values())
        mean = [0.8 * a + (1 - 0.8) * b for a, b in zip(mean, c, strict=True)] if mean else c
        assert content(own)["trust"]["mean"] == mean
    drive(own, params, range(5, 9))
    trust = content(own)["trust"]
    assert trust["mean"] == mean
    assert list(own.coefficients.values()) == [a * b for a, b in zip(mean, trust["factor"], strict=True)]


@pytest.mark.parametrize("growth", [30.0, 0.03])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_the_factor_keeps_its_bounds(growth: float, decay: float) -> None:
    """Gradients that grow or shrink after the freeze: down to 0.5 or up to 4, a tenth at a time."""
    params = parameters()
    own = onebit(params, freeze=30, betas=(0.9, 0.9), weight_decay=decay)
    last, seen = [1.0] * 3, []
    for step in range(80):
        drive(own, params, range(step, step + 1), growth if step >= 30 else 1.0)
        factor = content(own)["trust"]["factor"]
        for new, old in zip(factor, last, strict=True):
            assert 0.5 <= new <= 4.0 and 0.9 * old * (1 - 1e-12) <= new <= 1.1 * old * (1 + 1e-12)
        assert step >= 30 or factor == [1.0] * 3
        last = factor
        seen += factor
    if not decay:
        assert (min(seen) == 0.5) if growth > 1 else (max(seen) == 4.0)


def test_dead_elements() -> None:
    """They neither fly off, nor decide the factor of the others."""
    ends, factors = {}, {}
    for floor in (1e-3, 0.0):
        p = nn.Parameter(torch.linspace(-1, 1, 100))
        own = OneBitLamb([p], lr=1e-3, freeze=40, v_floor=floor, betas=(0.9, 0.9))
        before = p.detach().clone()
        for step in range(60):
            p.grad = torch.randn(100, generator=torch.Generator().manual_seed(step))
            p.grad[:50] = 1e-3 if step == 59 else 0.0
            own.step()
            if step == 41:
                factors[floor] = content(own)["trust"]["factor"][0]
        ends[floor] = float((p.detach() - before)[:50].abs().max())
    assert ends[1e-3] < 2e-3 and ends[0.0] > 1.0

    alone = nn.Parameter(torch.linspace(-1, 1, 50))  # a step of one sign, in which no element's variance falls
    p = nn.Parameter(torch.linspace(-1, 1, 100))
    owns = [OneBitLamb([q], lr=1e-3, freeze=40, betas=(0.9, 0.9)) for q in (p, alone)]
    for step in range(60):
        p.grad, alone.grad = torch.zeros(100), torch.full((50,), 1.0 + step)
        p.grad[50:] = alone.grad
        for own in owns:
            own.step()
    one, two = (content(own)["trust"]["factor"][0] for own in owns)
    assert one == pytest.approx(1.0, abs=1e-6) and two < 0.9  # d/(sqrt w + eps) of a dead element is 1, not floor/eps


def test_a_parameter_without_its_ratio() -> None:
    """``adapt=False``: c = 1 in both phases, whatever the others do."""
    one, two = module(), module()
    own = onebit(
        [{"params": [one.a, one.c]}, {"params": [one.b], "adapt": False, "weight_decay": 0.0}], weight_decay=0.1
    )
    adam = cc.optim.OneBitAdam([two.b], lr=0.01, freeze=5)
    for step in range(12):
        give([*one.parameters(), two.b], [*gradients(step), gradients(step)[1]])
        own.step()
        adam.step()
        c = list(own.coefficients.values())
        assert c[2] == 1.0 and c[0] != 1.0 != c[1]
    torch.testing.assert_close(one.b, two.b, rtol=1e-6, atol=1e-7)


def some() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(3))]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"betas": (0.9, 0.0)}, r"betas=\(0.9, 0.0\)\): b2 = 0 keeps no variance"),
        ({"min_coeff": 0.0}, r"OneBitLamb\(min_coeff=0.0, max_coeff=10.0\): two numbers, more than 0"),
        ({"min_coeff": 0.5, "max_coeff": 0.1}, r"min_coeff=0.5, max_coeff=0.1"),
        ({"max_coeff": float("inf")}, r"max_coeff=inf"),
        ({"coeff_beta": 1.0}, r"OneBitLamb\(coeff_beta=1.0\): a number in \[0, 1\)"),
        ({"factor_min": 1.5}, r"OneBitLamb\(factor_min=1.5, factor_max=4.0\): the factor begins with 1"),
        ({"factor_max": 0.9}, r"factor_max=0.9"),
        ({"factor_threshold": float("nan")}, r"OneBitLamb\(factor_threshold=nan\): a part of the last factor"),
    ],
)
def test_options(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        OneBitLamb(some(), **options)


def test_options_of_groups() -> None:
    with pytest.raises(ValueError, match=r"OneBitLamb\(adapt=0\): True, or False"):
        OneBitLamb([{"params": some(), "adapt": 0}])
    own = OneBitLamb(some())
    with pytest.raises(ValueError, match=r"max_coeff=-1"):
        own.add_param_group({"params": some(), "max_coeff": -1})
    assert len(own.param_groups) == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: {**c, "frozen_at": "2"}, "steps=3, frozen_at='2': the checkpoint is damaged"),
        (lambda c: {**c, "frozen_at": None}, r"moments \['denominator', 'exp_avg', 'exp_avg_sq'\] where"),
        (lambda c: {**c, "trust": {**c["trust"], "mean": [1.0]}}, r"mean=\[1.0\]: 2 numbers are due"),
        (lambda c: {**c, "trust": {**c["trust"], "factor": [1.0, "1"]}}, r"factor=.*2 numbers are due"),
        (lambda c: {k: v for k, v in c.items() if k != "scaling"}, "scaling=None: 2 numbers are due"),
        (lambda c: {**c, "floor": [1.0, float("nan")]}, "floor=.*2 numbers are due"),
    ],
)
def test_checkpoints_that_do_not_fit(change: Any, says: str) -> None:
    params = some()
    own = OneBitLamb(params, freeze=2)
    for _ in range(3):
        for p in params:
            p.grad = torch.ones_like(p)
        own.step()
    saved = own.state_dict()
    before = str(saved)
    (group,) = saved["param_groups"]
    group = {**group, "compcomm": {"rank 0 of 1": change(ours(saved))}}
    with pytest.raises(cc.StateError, match=says):
        own.load_state_dict({**saved, "param_groups": [group]})
    assert str(own.state_dict()) == before


def test_momentum_that_is_next_to_nothing_is_not_blown_up() -> None:
    """Scales stay within 2^20: a parameter whose gradients had ceased may have some again."""
    a, b, c = (nn.Parameter(torch.ones(40)) for _ in range(3))
    own = OneBitLamb([a, b, c], lr=1e-3, freeze=3)
    for _ in range(4):
        a.grad, b.grad, c.grad = torch.ones(40), torch.full((40,), 1e-30), torch.zeros(40)
        own.step()
    one, two, three = content(own)["scaling"]
    assert 0.3 < one < 0.4 and two == 2.0**20 and three == 1.0
