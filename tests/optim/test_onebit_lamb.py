"""1-bit LAMB on one rank: the formulas, the bounds of its ratios, and what a torch optimizer has to live with."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import compcomm as cc
from compcomm.optim import OneBitLamb
from tests.reference import onebit_lamb as page

from .saved import ours, same
from .test_alone import drive, flat, gradients, module


def onebit(params: Any, **options: Any) -> OneBitLamb:
    return OneBitLamb(params, **{"lr": 0.01, "freeze": 5, **options})


def content(own: OneBitLamb) -> dict[str, Any]:
    return ours(own.state_dict())


def moments(own: OneBitLamb, name: str) -> Tensor:
    return torch.cat([e[name].reshape(-1) for e in own.state_dict()["state"].values()])


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
    params = list(module().parameters())
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
    params = list(module().parameters())
    other = [p.detach().double().clone() for p in params]
    own = onebit(params, freeze=1000, weight_decay=decay, min_coeff=limits[0], max_coeff=limits[1])
    drive(own, params, range(20))
    ratios = lamb(other, range(20), 0.01, decay, limits)
    torch.testing.assert_close(flat(params).double(), flat(other), rtol=1e-5, atol=1e-6)
    assert list(own.coefficients.values()) == pytest.approx(ratios, rel=1e-5)


def test_the_mean_ratio() -> None:
    """It begins with the first ratio that is not 1, and is frozen with the variance."""
    params = list(module().parameters())
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


def test_a_ratio_that_was_never_measured_is_one() -> None:
    """A parameter that began with zeros and had no gradient in the warm-up moves after it; so does one at its limit."""
    a, b = nn.Parameter(torch.zeros(8)), nn.Parameter(torch.full((50,), 9.0))
    own = OneBitLamb([a, b], lr=1e-3, freeze=20, min_coeff=0.5, max_coeff=1.0)
    for step in range(30):
        a.grad = torch.full((8,), 0.0 if step < 20 else 1.0)
        b.grad = torch.randn(50, generator=torch.Generator().manual_seed(step))
        before = b.detach().clone()
        own.step()
        assert not torch.equal(before, b)
        if step < 20:
            assert own.coefficients == {"0": 1.0, "1": 1.0}
    assert content(own)["trust"]["mean"] == [1.0, 1.0]
    assert 0 < float(a.detach().abs().max()) < 0.1


@pytest.mark.parametrize("growth", [30.0, 0.03])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_the_factor_keeps_its_bounds(growth: float, decay: float) -> None:
    """Gradients that grow or shrink after the freeze: down to 0.5 or up to 4, a tenth at a time."""
    params = list(module().parameters())
    own = onebit(params, freeze=30, betas=(0.9, 0.9), weight_decay=decay)
    last, seen = [1.0] * 3, []
    for step in range(80):
        for p, g in zip(params, gradients(step), strict=True):
            p.grad = g * (growth if step >= 30 else 1.0)
        own.step()
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
        g = gradients(step)
        one.a.grad, one.b.grad, one.c.grad, two.b.grad = g[0], g[1], g[2], g[1]
        own.step()
        adam.step()
        c = list(own.coefficients.values())
        assert c[2] == 1.0 and c[0] != 1.0 != c[1]
    torch.testing.assert_close(one.b, two.b, rtol=1e-6, atol=1e-7)


def test_groups_and_schedules() -> None:
    """Rates, decay and limits of their own, changed in either phase; equal to two optimizers."""
    one, two = module(), module()
    groups = [{"params": [one.a], "lr": 0.02, "max_coeff": 0.15},
              {"params": [one.b, one.c], "weight_decay": 0.1, "betas": (0.8, 0.99)}]  # fmt: skip
    own = onebit(groups)
    apart = [onebit([two.a], lr=0.02, max_coeff=0.15), onebit([two.b, two.c], weight_decay=0.1, betas=(0.8, 0.99))]
    schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.9) for o in (own, *apart)]
    for step in range(12):
        for m in (one, two):
            for p, g in zip(m.parameters(), gradients(step), strict=True):
                p.grad = g
        for o in (own, *apart):
            o.step()
        for s in schedules:
            s.step()
    assert own.frozen_at == 5 and own.param_groups[0]["lr"] == pytest.approx(0.02 * 0.9**12)
    assert torch.equal(flat(list(one.parameters())), flat(list(two.parameters())))


def test_maximize() -> None:
    a, b = (list(module().parameters()) for _ in range(2))
    one, two = onebit(a, maximize=True, weight_decay=0.1), onebit(b, weight_decay=0.1)
    for step in range(10):
        for p, q, g in zip(a, b, gradients(step), strict=True):
            p.grad, q.grad = -g, g
        one.step()
        two.step()
    assert torch.equal(flat(a), flat(b))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_with_fp32_state(dtype: torch.dtype) -> None:
    params = list(module(dtype).parameters())
    own = onebit(params, weight_decay=0.1)
    drive(own, params, range(8))
    state = own.state_dict()["state"]
    assert all(t.dtype == torch.float32 for entry in state.values() for t in entry.values())
    assert all(p.dtype == dtype and torch.isfinite(p).all() for p in params)
    wide = list(module().parameters())
    other = onebit(wide, weight_decay=0.1)
    for step in range(8):
        for p, g in zip(wide, gradients(step), strict=True):
            p.grad = g.to(dtype).float()
        other.step()
    rough = 1e-6 if dtype == torch.float64 else 0.02
    torch.testing.assert_close(flat(params).float(), flat(wide), rtol=rough, atol=rough)


def test_memory_formats_and_closures() -> None:
    """A channels_last convolution, and gradients in other orders than the parameter's."""
    torch.manual_seed(0)
    one = nn.Conv2d(3, 4, 3)
    two = copy.deepcopy(one).to(memory_format=torch.channels_last)
    owns = [onebit(m.parameters(), freeze=2) for m in (one, two)]
    for step in range(5):
        x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(step))

        def closure(m: nn.Module, o: OneBitLamb, x: Tensor = x) -> Tensor:
            o.zero_grad()
            loss = m(x).square().mean()
            loss.backward()
            return loss

        losses = [o.step(lambda m=m, o=o: closure(m, o)) for m, o in zip((one, two), owns, strict=True)]
        torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(one.weight, two.weight.contiguous(), rtol=1e-5, atol=1e-6)


def test_many_batches_and_empty_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut into small batches, with parameters of no and of one element between: the same bits."""
    from compcomm.optim import flat as plan

    ends = []
    for message in (plan.MESSAGE, 50):
        monkeypatch.setattr(plan, "MESSAGE", message)
        shapes = [(0, 3), (60,), ()]
        params = [*module().parameters(), *[nn.Parameter(torch.ones(s)) for s in shapes]]
        own = onebit(params, weight_decay=0.1)
        assert len(own.flat.batches) == (1 if message > 50 else 6)  # one of them empty
        for step in range(9):
            for p, g in zip(params, [*gradients(step), *map(torch.ones, shapes)], strict=True):
                p.grad = g
            own.step()
        ends.append(flat(params))
    assert torch.equal(ends[0], ends[1])


def test_parameters_without_a_gradient_are_passed_over() -> None:
    m = module()
    own = onebit(m.parameters(), weight_decay=0.5, freeze=2)
    before = m.b.detach().clone()
    for step in range(5):
        g = gradients(step)
        m.a.grad, m.c.grad = g[0], g[2]
        own.step()
    entry = own.state_dict()["state"][1]
    assert torch.equal(m.b, before) and not entry["exp_avg"].any() and not entry["exp_avg_sq"].any()
    assert own.coefficients["1"] == 1.0 and content(own)["trust"]["factor"][1] == 1.0


@pytest.mark.parametrize("when", [1, 4])
def test_a_bad_step_changes_nothing(when: int) -> None:
    """In either phase, with a GradScaler; after the warm-up also without."""
    params = list(module().parameters())
    own = onebit(params, freeze=3)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    drive(own, params, range(when))
    before, state = flat(params).clone(), copy.deepcopy(own.state_dict())
    for p, g in zip(params, gradients(99), strict=True):
        p.grad = g.clone()
    params[1].grad[0] = float("inf")
    scaler.scale(torch.ones(()))
    scaler.step(own)
    scaler.update()
    if own.compressed:
        own.step()
    assert torch.equal(flat(params), before) and scaler.get_scale() == 4.0
    assert same(state, own.state_dict())


def test_a_scaler_scales_nothing_that_stays() -> None:
    a, b = (list(module().parameters()) for _ in range(2))
    one, two = onebit(a, freeze=3), onebit(b, freeze=3)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=1000)
    scaler.scale(torch.ones(()))
    for step in range(6):
        for p, g in zip(a, gradients(step), strict=True):
            p.grad = g * 64.0
        if step % 2:
            scaler.unscale_(one)
        scaler.step(one)
        scaler.update()
        drive(two, b, range(step, step + 1))
    torch.testing.assert_close(flat(a), flat(b), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("at", [3, 8])
@pytest.mark.parametrize("merged", [False, True])
def test_a_checkpoint_resumes_to_the_bit(at: int, merged: bool, tmp_path: Any) -> None:
    params = list(module().parameters())
    own = onebit(params, weight_decay=0.1, factor_max=1, max_coeff=10)
    drive(own, params, range(at))
    saved = own.portable_state_dict() if merged else own.state_dict()
    cc.checkpoint.save(tmp_path / "o.pt", {"x": [p.detach() for p in params], "o": saved})
    drive(own, params, range(at, 12))
    read = cc.checkpoint.load(tmp_path / "o.pt")
    again = [nn.Parameter(x) for x in read["x"]]
    other = onebit(again, lr=0.5, factor_max=1)
    other.load_state_dict(read["o"])
    assert other.frozen_at == (5 if at > 5 else None) and other.param_groups[0]["lr"] == 0.01
    drive(other, again, range(at, 12))
    assert torch.equal(flat(again), flat(params))
    assert content(other) == content(own) and other.coefficients == own.coefficients


def test_going_back_to_the_warm_up() -> None:
    params = list(module().parameters())
    own = onebit(params)
    drive(own, params, range(3))
    saved, x = own.state_dict(), [p.detach().clone() for p in params]
    drive(own, params, range(3, 9))
    due = flat(params)
    own.load_state_dict(saved)
    with torch.no_grad():
        for p, old in zip(params, x, strict=True):
            p.copy_(old)
    assert own.frozen_at is None
    drive(own, params, range(3, 9))
    assert torch.equal(flat(params), due)


def test_parameters_added_during_the_warm_up() -> None:
    one, two = module(), module()
    own, whole = onebit([one.a, one.b]), onebit(two.parameters())
    for step in range(8):
        if step == 2:
            own.add_param_group({"params": [one.c]})
        for m in (one, two):
            for p, g in zip(m.parameters(), gradients(step), strict=True):
                p.grad = g
        if step < 2:
            two.c.grad = None
        own.step()
        whole.step()
    assert torch.equal(flat(list(one.parameters())), flat(list(two.parameters())))
    with pytest.raises(ValueError, match=r"OneBitLamb.add_param_group: the warm-up is over"):
        own.add_param_group({"params": [nn.Parameter(torch.zeros(3))]})


def some() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(3))]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"lr": -1.0}, r"OneBitLamb\(lr=-1.0\): a number, 0 or more"),
        ({"betas": (0.9, 1.0)}, r"betas=\(0.9, 1.0\)\): two numbers in \[0, 1\)"),
        ({"betas": (0.9, 0.0)}, r"betas=\(0.9, 0.0\)\): b2 = 0 keeps no variance"),
        ({"amsgrad": True}, r"OneBitLamb\(amsgrad=True\)"),
        ({"freeze": 0}, r"OneBitLamb\(freeze=0\)"),
        ({"v_floor": 1.5}, r"OneBitLamb\(v_floor=1.5\)"),
        ({"min_coeff": 0.0}, r"OneBitLamb\(min_coeff=0.0, max_coeff=10.0\): two numbers, more than 0"),
        ({"min_coeff": 0.5, "max_coeff": 0.1}, r"min_coeff=0.5, max_coeff=0.1"),
        ({"max_coeff": float("inf")}, r"max_coeff=inf"),
        ({"coeff_beta": 1.0}, r"OneBitLamb\(coeff_beta=1.0\): a number in \[0, 1\)"),
        ({"factor_min": 1.5}, r"OneBitLamb\(factor_min=1.5, factor_max=4.0\): the factor begins with 1"),
        ({"factor_max": 0.9}, r"factor_max=0.9"),
        ({"factor_threshold": float("nan")}, r"OneBitLamb\(factor_threshold=nan\): a part of the last factor"),
        ({"warmup": cc.ErrorFeedback(cc.TopK(0.01))}, r"warmup=.*keeps what it does not send.*Use Exact\(\)"),
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
        (
            lambda c: {**c, "optimizer": "OneBitAdam"},
            "optimizer is 'OneBitAdam' in the checkpoint and 'OneBitLamb' here",
        ),
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
