"""0/1 Adam on one rank: the formulas, the two schedules, wrong inputs, and checkpoints in every phase."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import compcomm as cc
from compcomm.optim import ZeroOneAdam
from tests.reference import zero_one_adam as page

from .alone import drive, flat, give, gradients, make, moments, overflow, parameters
from .saved import ours, same

FREEZE, STEPS = 12, 40
SCHEDULES = {"var_update_scaler": 3, "local_step_scaler": 6, "local_step_clipper": 4}
REFRESHES = [1, 2, 3, 4, 6, 8, 12]
MEETINGS = [13, 14, 15, 16, 17, 18, 20, 22, 24, 28, 32, 36, 40]


def zero_one(params: Any, **options: Any) -> ZeroOneAdam:
    return make("ZeroOneAdam", params, **{"freeze": FREEZE, **SCHEDULES, **options})


@pytest.mark.parametrize("correction", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_page(correction: bool, decay: float) -> None:
    params = parameters()
    own = zero_one(params, weight_decay=decay, bias_correction=correction)
    due = page.ZeroOneAdam(
        flat(params).numpy().copy(), [p.numel() for p in params], 1, lambda: lambda inputs: inputs[0], FREEZE, 0.01,
        decay=decay, bias_correction=correction, **SCHEDULES,
    )  # fmt: skip
    refreshed, met = list[int](), list[int]()
    for step in range(STEPS):
        before = own.refreshes
        drive(own, params, range(step, step + 1))
        due.step([flat(gradients(step)).numpy()])
        assert np.allclose(flat(params).numpy(), due.x[0], rtol=1e-6, atol=1e-6), step
        refreshed += [own.steps] * (own.refreshes - before)
        met += [own.steps] * (own.compressed and not own.local_steps)
    assert own.frozen_at == FREEZE and own.steps == STEPS
    assert refreshed == due.refreshed == REFRESHES
    assert met[1:] == due.met == MEETINGS and met[0] == FREEZE


@pytest.mark.parametrize(
    ("scaler", "clipper", "meetings"),
    [
        (1, 1, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
        (1, 8, [1, 2, 8]),
        (3, 3, [1, 2, 3, 4, 6, 9, 12]),
        (100, 16, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
    ],
)
def test_when_the_ranks_meet(scaler: int, clipper: int, meetings: list[int]) -> None:
    params = parameters()
    own = zero_one(params, freeze=3, local_step_scaler=scaler, local_step_clipper=clipper)
    drive(own, params, range(3))
    met = list[int]()
    for k in range(1, 13):
        drive(own, params, range(k, k + 1))
        met += [] if own.local_steps else [k]
    assert met == meetings


@pytest.mark.parametrize("option", [{}, {"maximize": True}, {"weight_decay": 0.1, "decoupled_weight_decay": False}])
def test_with_refreshes_alone_it_is_adam(option: dict[str, Any]) -> None:
    a, b = (parameters() for _ in range(2))
    drive(zero_one(a, freeze=100, var_update_scaler=100, bias_correction=True, **option), a, range(15))
    drive(torch.optim.Adam(b, lr=0.01, **option), b, range(15))
    torch.testing.assert_close(flat(a), flat(b), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("clipper", [1, 4])
def test_local_steps_in_double_precision(clipper: int, decoupled: bool) -> None:
    """Preconditioned momentum with decay, whose momentum is its own mean after every interval."""
    params = parameters()
    own = zero_one(
        params, weight_decay=0.5, decoupled_weight_decay=decoupled, local_step_scaler=1, local_step_clipper=clipper
    )
    drive(own, params, range(FREEZE))
    x, m, d = flat(params).double(), moments(own, "exp_avg").double(), moments(own, "denominator").double()
    weighed, s = torch.zeros_like(m), 0.0
    for step in range(FREEZE, STEPS):
        g = flat(gradients(step)).double()
        m = 0.9 * m + 0.1 * (g if decoupled else g + 0.5 * x)
        keep = 1 - 0.01 * 0.5 if decoupled else 1.0
        x = keep * x - 0.01 * m / d
        weighed, s = keep * weighed + m, keep * s + 1
        drive(own, params, range(step, step + 1))
        if not own.local_steps:
            m, weighed, s = weighed / s, torch.zeros_like(m), 0.0
    torch.testing.assert_close(flat(params).double(), x, rtol=1e-5, atol=2e-6)


def test_a_rate_of_zero() -> None:
    params = parameters()
    own = zero_one(params, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(own, lambda t: 0.0 if 20 <= t < 30 else 1.0)
    for step in range(STEPS):
        before = flat(params).clone()
        drive(own, params, range(step, step + 1))
        schedule.step()
        assert torch.isfinite(flat(params)).all()
        assert torch.equal(flat(params), before) == (20 <= step < 30)


def test_after_the_freeze_a_missing_gradient_is_zero() -> None:
    a, b = (parameters() for _ in range(2))
    one, two = zero_one(a, weight_decay=0.5), zero_one(b, weight_decay=0.5)
    for step in range(STEPS):
        _, g, h = given = gradients(step)
        give(a, given if step < FREEZE else [None, g, h])
        give(b, given if step < FREEZE else [torch.zeros_like(a[0]), g, h])
        one.step()
        two.step()
    assert torch.equal(flat(a), flat(b))


def alike(before: Any, after: Any) -> bool:
    """Two states, but for the number of steps, and what follows from that."""
    return same(before, after, "steps", "step", "travelled", "shrunk", "exp_avg_sq")


def test_a_bad_local_step_changes_nothing() -> None:
    """But the number of steps: with a GradScaler, and without."""
    params = parameters()
    own = zero_one(params)
    drive(own, params, range(29))
    before, state = flat(params).clone(), copy.deepcopy(own.state_dict())
    scaler = overflow(own, params)
    assert scaler.get_scale() == 4.0 and own.steps == 30
    own.step()
    assert torch.equal(flat(params), before) and alike(state, own.state_dict()) and own.steps == 31


def test_a_synchronisation_does_not_wait_for_a_good_step() -> None:
    """What was gathered is applied; what the bad step would have given is missing, and the momentum shorter."""
    params = parameters()
    own = zero_one(params)
    drive(own, params, range(35))
    before = flat(params).clone()
    params[0].grad[0, 0] = float("nan")
    own.step()
    assert own.local_steps == 0 and own.steps == 36
    torch.testing.assert_close(flat(params), before, rtol=0, atol=1e-6)
    drive(own, params, range(36, STEPS))
    assert torch.isfinite(flat(params)).all()


def test_what_others_change_between_two_intervals_stays() -> None:
    ends = []
    for shift in (0.0, 5.0):
        params = parameters()
        own = zero_one(params)
        drive(own, params, range(32))
        with torch.no_grad():
            for p in params:
                p.add_(shift)
        drive(own, params, range(32, 36))
        ends.append(flat(params) - shift)
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-5)


def test_what_others_still_owe() -> None:
    """One rank goes on where several were: their residual is applied with the next step or synchronisation."""
    for at in (10, 28):
        ends = []
        for owed in (0.0, 1e-3):
            params = parameters()
            own = zero_one(params, betas=(0.9, 0.999))
            drive(own, params, range(at))
            own.absorb(torch.full_like(flat(params), owed))
            own.load_state_dict(own.state_dict())  # it survives
            d = moments(own, "denominator" if at > FREEZE else "exp_avg_sq")
            drive(own, params, range(at, at + (4 if at > FREEZE else 1)))
            ends.append(flat(params))
        step = 0.01 * (1 + 0.9 + 0.81 + 0.729) / d if at > FREEZE else 0.01 * 0.1 / (d.sqrt() + 1e-8)
        torch.testing.assert_close(ends[0] - ends[1], 1e-3 * step, rtol=0.02, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"freeze": "auto"}, r"ZeroOneAdam\(freeze='auto'\): an integer, 1 or more: the number of steps before the"),
        ({"var_update_scaler": 0}, r"var_update_scaler=0\): an integer, 1 or more: refreshes before"),
        ({"local_step_scaler": -1}, r"local_step_scaler=-1"),
        ({"local_step_clipper": 1.5}, r"local_step_clipper=1.5"),
        ({"lr": 0.1, "weight_decay": 10.0}, r"ZeroOneAdam\(weight_decay=10.0\): at lr=0.1 a step takes the whole"),
    ],
)
def test_options(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ZeroOneAdam(parameters(), **{"freeze": 5, **options})


def test_the_freeze_must_be_given() -> None:
    with pytest.raises(TypeError, match="freeze"):
        ZeroOneAdam(parameters())  # type: ignore[call-arg]


def test_one_rank_sends_nothing() -> None:
    own = ZeroOneAdam(parameters(), freeze=5)
    own.synchronise()
    assert own.report().bytes_sent == 0.0 and own.report().world == 1


def put(name: str, value: Any) -> Any:
    """Into the numbers, or into what is the rank's own of the first parameter."""

    def change(saved: Any) -> None:
        mine = saved["state"][0]["compcomm"]["rank 0 of 1"]
        (mine if name in mine else ours(saved)["local"] if name == "shrunk" else ours(saved))[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (put("refreshes", "many"), "refreshes='many'"),
        (put("local", None), "moments .'denominator', 'exp_avg_sq'. where exp_avg, exp_avg_sq or denominator are due"),
        (put("local exp_avg", None), "this rank's 'local exp_avg', .* is missing or of others"),
        (put("local update", torch.zeros(3)), "this rank's 'local update', .* is missing or of others"),
        (put("anchor", torch.zeros(3)), "this rank's 'anchor', .* is missing or of others"),
        (put("shrunk", [1.0, 1.0]), r"shrunk=\[1.0, 1.0\] where 1 numbers are due"),
    ],
)
def test_checkpoints_that_do_not_fit(change: Any, says: str) -> None:
    params = parameters()
    own = zero_one(params)
    drive(own, params, range(21))
    before, given = copy.deepcopy(own.state_dict()), copy.deepcopy(own.state_dict())
    change(given)
    with pytest.raises(cc.StateError, match=says):
        own.load_state_dict(given)
    assert str(own.state_dict()) == str(before)


def test_it_trains() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 1))
    own = ZeroOneAdam(model, lr=3e-3, freeze=60, local_step_scaler=20)
    losses = []
    for step in range(300):
        x = torch.randn(32, 16, generator=torch.Generator().manual_seed(step))
        loss: Tensor = (model(x) - x[:, :1] * x[:, 1:2].tanh()).square().mean()
        own.zero_grad()
        loss.backward()
        own.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-20:]) < 0.4 * np.mean(losses[:20])
