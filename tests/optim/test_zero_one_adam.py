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

from .saved import ours, same, tensors
from .test_alone import drive, flat, gradients, module

FREEZE, STEPS = 12, 40
SCHEDULES = {"var_update_scaler": 3, "local_step_scaler": 6, "local_step_clipper": 4}
REFRESHES = [1, 2, 3, 4, 6, 8, 12]
MEETINGS = [13, 14, 15, 16, 17, 18, 20, 22, 24, 28, 32, 36, 40]


def zero_one(params: Any, **options: Any) -> ZeroOneAdam:
    return ZeroOneAdam(params, **{"lr": 0.01, "freeze": FREEZE, **SCHEDULES, **options})


@pytest.mark.parametrize("correction", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_page(correction: bool, decay: float) -> None:
    params = list(module().parameters())
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
    params = list(module().parameters())
    own = zero_one(params, freeze=3, local_step_scaler=scaler, local_step_clipper=clipper)
    drive(own, params, range(3))
    met = list[int]()
    for k in range(1, 13):
        drive(own, params, range(k, k + 1))
        met += [] if own.local_steps else [k]
    assert met == meetings


def test_the_freeze_waits_for_the_rate() -> None:
    params = list(module().parameters())
    own = zero_one(params, freeze=3)
    schedule = torch.optim.lr_scheduler.LambdaLR(own, lambda t: min(1.0, (t + 1) / 6))
    for step in range(10):
        drive(own, params, range(step, step + 1))
        schedule.step()
    assert own.frozen_at == 7  # the rate of the sixth step is the last that rose


@pytest.mark.parametrize("option", [{}, {"maximize": True}, {"weight_decay": 0.1, "decoupled_weight_decay": False}])
def test_with_refreshes_alone_it_is_adam(option: dict[str, Any]) -> None:
    a, b = (list(module().parameters()) for _ in range(2))
    drive(zero_one(a, freeze=100, var_update_scaler=100, bias_correction=True, **option), a, range(15))
    drive(torch.optim.Adam(b, lr=0.01, **option), b, range(15))
    torch.testing.assert_close(flat(a), flat(b), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("clipper", [1, 4])
def test_local_steps_in_double_precision(clipper: int, decoupled: bool) -> None:
    """Preconditioned momentum with decay, whose momentum is its own mean after every interval."""
    params = list(module().parameters())
    own = zero_one(
        params, weight_decay=0.5, decoupled_weight_decay=decoupled, local_step_scaler=1, local_step_clipper=clipper
    )
    drive(own, params, range(FREEZE))
    x, state = flat(params).double(), own.state_dict()["state"]
    m, d = (torch.cat([state[i][k].view(-1) for i in state]).double() for k in ("exp_avg", "denominator"))
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


def test_maximizing_is_minimizing_the_opposite() -> None:
    a, b = (list(module().parameters()) for _ in range(2))
    one, two = zero_one(a, maximize=True), zero_one(b)
    for step in range(STEPS):
        for p, q, g in zip(a, b, gradients(step), strict=True):
            p.grad, q.grad = -g, g
        one.step()
        two.step()
    assert torch.equal(flat(a), flat(b))


def test_a_rate_of_zero() -> None:
    params = list(module().parameters())
    own = zero_one(params, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(own, lambda t: 0.0 if 20 <= t < 30 else 1.0)
    for step in range(STEPS):
        before = flat(params).clone()
        drive(own, params, range(step, step + 1))
        schedule.step()
        assert torch.isfinite(flat(params)).all()
        assert torch.equal(flat(params), before) == (20 <= step < 30)


def test_dead_elements() -> None:
    """An element without a gradient before the freeze and with one after it: the floor bounds its step."""
    ends = {}
    for floor in (1e-3, 0.0):
        p = nn.Parameter(torch.zeros(100))
        own = ZeroOneAdam([p], lr=1e-3, freeze=20, v_floor=floor)
        for step in range(21):
            p.grad = torch.randn(100, generator=torch.Generator().manual_seed(step))
            p.grad[:50] = 1e-3 if step == 20 else 0.0
            own.step()
        ends[floor] = float(p.detach()[:50].abs().max())
    assert ends[1e-3] < 2e-3  # lr (1 - b1) 1e-3 / (1e-3 rms), with rms = 0.7 of some 0.14
    assert ends[0.0] > 5.0  # lr (1 - b1) 1e-3 / eps


def test_groups_and_schedules() -> None:
    """Rates and decay of their own, changed in every phase; equal to two optimizers."""
    one, two = module(), module()
    groups = [{"params": [one.a], "lr": 0.02}, {"params": [one.b, one.c], "weight_decay": 0.1, "betas": (0.8, 0.99)}]
    own = zero_one(groups)
    apart = [zero_one([two.a], lr=0.02), zero_one([two.b, two.c], weight_decay=0.1, betas=(0.8, 0.99))]
    schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.98) for o in (own, *apart)]
    for step in range(STEPS):
        for m in (one, two):
            for p, g in zip(m.parameters(), gradients(step), strict=True):
                p.grad = g
        for o in (own, *apart):
            o.step()
        for s in schedules:
            s.step()
    assert own.frozen_at == FREEZE
    assert torch.equal(flat(list(one.parameters())), flat(list(two.parameters())))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_with_fp32_state(dtype: torch.dtype) -> None:
    params, wide = list(module(dtype).parameters()), list(module().parameters())
    own, other = zero_one(params), zero_one(wide)
    drive(own, params, range(STEPS - 1))
    for step in range(STEPS - 1):
        for p, g in zip(wide, gradients(step), strict=True):
            p.grad = g.to(dtype).float()
        other.step()
    local = tensors(own.state_dict(), "abc")
    assert local["local update"]["a"].dtype == torch.float32
    assert all(t.dtype == dtype for t in local["anchor"].values())
    assert all(p.dtype == dtype for p in params)
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float64 else {"rtol": 0.02, "atol": 0.02}
    torch.testing.assert_close(flat(params).float(), flat(wide), **close)


def test_memory_formats() -> None:
    torch.manual_seed(0)
    one = nn.Conv2d(3, 4, 3)
    two = copy.deepcopy(one).to(memory_format=torch.channels_last)
    owns = [zero_one(m.parameters(), freeze=4) for m in (one, two)]
    for step in range(STEPS):
        x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        for m, o in zip((one, two), owns, strict=True):
            o.zero_grad()
            m(x).square().mean().backward()
            o.step()
    torch.testing.assert_close(one.weight, two.weight.contiguous(), rtol=1e-4, atol=1e-5)


def test_parameters_without_a_gradient() -> None:
    """Passed over before the freeze; after it a missing gradient is zero."""
    one, two = module(), module()
    own, other = zero_one(one.parameters(), weight_decay=0.5), zero_one(two.parameters(), weight_decay=0.5)
    before = one.b.detach().clone()
    for step in range(FREEZE):
        g = gradients(step)
        one.a.grad, one.c.grad = g[0], g[2]
        own.step()
        two.a.grad, two.c.grad = g[0], g[2]
        other.step()
    assert torch.equal(one.b, before) and not own.state_dict()["state"][1]["exp_avg"].any()
    for step in range(FREEZE, STEPS):
        g = gradients(step)
        one.a.grad, one.b.grad, one.c.grad = None, g[1], g[2]
        two.a.grad, two.b.grad, two.c.grad = torch.zeros_like(g[0]), g[1], g[2]
        own.step()
        other.step()
    assert torch.equal(flat(list(one.parameters())), flat(list(two.parameters())))


def alike(before: Any, after: Any) -> bool:
    """Two states, but for the number of steps, and what follows from that."""
    return same(before, after, "steps", "step", "travelled", "shrunk", "exp_avg_sq")


@pytest.mark.parametrize("when", [1, 4, 30])
def test_a_bad_step_changes_nothing(when: int) -> None:
    """In a refresh, in a compressed step and in a local one; with a GradScaler, and without."""
    params = list(module().parameters())
    own = zero_one(params)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    drive(own, params, range(when))
    before, state = flat(params).clone(), copy.deepcopy(own.state_dict())
    for p, g in zip(params, gradients(99), strict=True):
        p.grad = g.clone()
    params[1].grad[0] = float("inf")
    scaler.scale(torch.ones(()))
    scaler.step(own)
    scaler.update()
    assert torch.equal(flat(params), before) and scaler.get_scale() == 4.0
    assert alike(state, own.state_dict()) and own.steps == (when if when < FREEZE else when + 1)
    params[1].grad[0] = float("nan")
    if own.steps != 31:  # the next one synchronises
        own.step()
        assert torch.equal(flat(params), before) and alike(state, own.state_dict())


def test_a_synchronisation_does_not_wait_for_a_good_step() -> None:
    """What was gathered is applied; what the bad step would have given is missing, and the momentum shorter."""
    params = list(module().parameters())
    own = zero_one(params)
    drive(own, params, range(35))
    before = flat(params).clone()
    params[0].grad[0, 0] = float("nan")
    own.step()
    assert own.local_steps == 0 and own.steps == 36
    torch.testing.assert_close(flat(params), before, rtol=0, atol=1e-6)
    drive(own, params, range(36, STEPS))
    assert torch.isfinite(flat(params)).all()


def test_a_scaler_that_unscales() -> None:
    a, b = (list(module().parameters()) for _ in range(2))
    one, two = zero_one(a), zero_one(b)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=1000)
    scaler.scale(torch.ones(()))
    for step in range(STEPS):
        for p, g in zip(a, gradients(step), strict=True):
            p.grad = g * 64.0
        if step % 2:
            scaler.unscale_(one)
        scaler.step(one)
        scaler.update()
        drive(two, b, range(step, step + 1))
    assert torch.equal(flat(a), flat(b))


@pytest.mark.parametrize("at", [3, 9, 12, 15, 21, 29, 32, 35])
@pytest.mark.parametrize("merged", [False, True])
def test_a_checkpoint_resumes_to_the_bit(at: int, merged: bool, tmp_path: Any) -> None:
    params = list(module().parameters())
    own = zero_one(params, weight_decay=0.1)
    drive(own, params, range(at))
    saved = own.portable_state_dict() if merged else own.state_dict()
    assert (own.local_steps > 0) == (not merged and at in (21, 29, 35))
    cc.checkpoint.save(tmp_path / "o.pt", {"x": [p.detach() for p in params], "o": saved})
    drive(own, params, range(at, STEPS))
    read = cc.checkpoint.load(tmp_path / "o.pt")
    again = [nn.Parameter(torch.zeros_like(x)) for x in read["x"]]
    other = zero_one(again, lr=0.5)
    other.load_state_dict(read["o"])
    with torch.no_grad():  # the model's turn comes last
        for p, x in zip(again, read["x"], strict=True):
            p.copy_(x)
    assert other.frozen_at == (FREEZE if at >= FREEZE else None) and other.param_groups[0]["lr"] == 0.01
    drive(other, again, range(at, STEPS))
    assert torch.equal(flat(again), flat(params)) and other.refreshes == own.refreshes


def test_what_others_change_between_two_intervals_stays() -> None:
    ends = []
    for shift in (0.0, 5.0):
        params = list(module().parameters())
        own = zero_one(params)
        drive(own, params, range(32))
        with torch.no_grad():
            for p in params:
                p.add_(shift)
        drive(own, params, range(32, 36))
        ends.append(flat(params) - shift)
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("back", [3, 13])
def test_going_back(back: int) -> None:
    """From local steps to before the freeze, and to intervals of one step."""
    params = list(module().parameters())
    own = zero_one(params)
    drive(own, params, range(back))
    saved, x = own.state_dict(), [p.detach().clone() for p in params]
    drive(own, params, range(back, 31))
    due = flat(params)
    own.load_state_dict(saved)
    with torch.no_grad():
        for p, old in zip(params, x, strict=True):
            p.copy_(old)
    assert own.steps == back and own.local_steps == 0
    drive(own, params, range(back, 31))
    assert torch.equal(flat(params), due)


def test_parameters_added_before_the_freeze() -> None:
    one, two = module(), module()
    own, whole = zero_one([one.a, one.b]), zero_one(two.parameters())
    for step in range(STEPS):
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
    with pytest.raises(ValueError, match=r"ZeroOneAdam.add_param_group: the warm-up is over"):
        own.add_param_group({"params": [nn.Parameter(torch.zeros(3))]})


def test_what_others_still_owe() -> None:
    """One rank goes on where several were: their residual is applied with the next step or synchronisation."""
    for at in (10, 28):
        ends = []
        for owed in (0.0, 1e-3):
            params = list(module().parameters())
            own = zero_one(params, betas=(0.9, 0.999))
            drive(own, params, range(at))
            own.absorb(torch.full_like(flat(params), owed))
            saved = own.state_dict()
            own.load_state_dict(saved)  # it survives
            d = torch.cat([e["denominator" if at > FREEZE else "exp_avg_sq"].view(-1) for e in saved["state"].values()])
            drive(own, params, range(at, at + (4 if at > FREEZE else 1)))
            ends.append(flat(params))
        step = 0.01 * (1 + 0.9 + 0.81 + 0.729) / d if at > FREEZE else 0.01 * 0.1 / (d.sqrt() + 1e-8)
        torch.testing.assert_close(ends[0] - ends[1], 1e-3 * step, rtol=0.02, atol=1e-6)


def params() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(3))]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"freeze": "auto"}, r"ZeroOneAdam\(freeze='auto'\): an integer, 1 or more: the number of steps before the"),
        ({"freeze": 0}, r"freeze=0"),
        ({"freeze": 2.5}, r"freeze=2.5"),
        ({"freeze": True}, r"freeze=True"),
        ({"var_update_scaler": 0}, r"var_update_scaler=0\): an integer, 1 or more: refreshes before"),
        ({"local_step_scaler": -1}, r"local_step_scaler=-1"),
        ({"local_step_clipper": 1.5}, r"local_step_clipper=1.5"),
        ({"v_floor": -1}, r"ZeroOneAdam\(v_floor=-1\): a part of the root mean square"),
        ({"lr": -1.0}, r"ZeroOneAdam\(lr=-1.0\): a number, 0 or more"),
        ({"betas": (0.9, 1.0)}, r"betas=\(0.9, 1.0\)\): two numbers in \[0, 1\)"),
        ({"amsgrad": True}, r"amsgrad=True\)"),
        ({"lr": 0.1, "weight_decay": 10.0}, r"ZeroOneAdam\(weight_decay=10.0\): at lr=0.1 a step takes the whole"),
        ({"warmup": cc.ErrorFeedback(cc.TopK(0.01))}, r"warmup=.*keeps what it does not send.*Use Exact\(\)"),
        ({"compressor": cc.SignScale(scale="dot")}, r"no contraction.*Use SignScale\(scale='l1'\)"),
    ],
)
def test_options(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ZeroOneAdam(params(), **{"freeze": 5, **options})


def test_the_freeze_must_be_given() -> None:
    with pytest.raises(TypeError, match="freeze"):
        ZeroOneAdam(params())  # type: ignore[call-arg]


def test_one_rank_sends_nothing() -> None:
    own = ZeroOneAdam(params(), freeze=5)
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
    params = list(module().parameters())
    own = zero_one(params)
    drive(own, params, range(21))
    before, given = copy.deepcopy(own.state_dict()), copy.deepcopy(own.state_dict())
    change(given)
    with pytest.raises(cc.StateError, match=says):
        own.load_state_dict(given)
    assert str(own.state_dict()) == str(before)


def test_the_state_of_another_optimizer() -> None:
    own = cc.optim.OneBitAdam(params())
    with pytest.raises(cc.StateError, match="optimizer is 'OneBitAdam' in the checkpoint and 'ZeroOneAdam' here"):
        ZeroOneAdam(params(), freeze=5).load_state_dict(own.state_dict())


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
