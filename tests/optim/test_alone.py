"""One rank: the formulas, and what a torch optimizer is expected to live with."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import compcomm as cc
from compcomm.optim import OneBitAdam
from tests.reference import onebit_adam as page

from .saved import same

SHAPES = {"a": (16, 12), "b": (7,), "c": (3, 5, 4)}


def module(dtype: torch.dtype = torch.float32) -> nn.Module:
    made = nn.Module()
    for name, shape in SHAPES.items():
        numel = int(np.prod(shape))
        made.register_parameter(name, nn.Parameter(torch.linspace(-1, 1, numel).view(shape).to(dtype)))
    return made


def gradients(step: int, seed: int = 0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(1000 * seed + step)
    return [torch.randn(shape, generator=draw) for shape in SHAPES.values()]


def drive(optimizer: Any, params: list[Tensor], steps: range) -> None:
    for step in steps:
        for p, g in zip(params, gradients(step), strict=True):
            p.grad = g.to(p.dtype)
        optimizer.step()


def flat(params: list[Tensor]) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in params])


def onebit(params: Any, **options: Any) -> OneBitAdam:
    return OneBitAdam(params, **{"lr": 0.01, "freeze": 5, **options})


@pytest.mark.parametrize("correction", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_page(correction: bool, decay: float) -> None:
    params = list(module().parameters())
    own = onebit(params, weight_decay=decay, bias_correction=correction)
    x = flat(params).numpy().copy()
    due = page.OneBitAdam(
        x, [p.numel() for p in params], lambda inputs: inputs[0], 5, 0.01, decay=decay, bias_correction=correction
    )
    for step in range(12):
        drive(own, params, range(step, step + 1))
        due.step([flat(gradients(step)).numpy()])
        assert np.allclose(flat(params).numpy(), due.x, rtol=1e-6, atol=1e-7), step
    assert own.frozen_at == 5


def test_with_bias_correction_and_no_freeze_it_is_adamw() -> None:
    a, b = (list(module().parameters()) for _ in range(2))
    own = onebit(a, freeze=1000, bias_correction=True, weight_decay=0.1)
    drive(own, a, range(20))
    drive(torch.optim.AdamW(b, lr=0.01, weight_decay=0.1), b, range(20))
    torch.testing.assert_close(flat(a), flat(b), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("option", [{"maximize": True}, {"weight_decay": 0.1, "decoupled_weight_decay": False}])
def test_the_options_of_adam(option: dict[str, Any]) -> None:
    a, b = (list(module().parameters()) for _ in range(2))
    drive(onebit(a, freeze=1000, bias_correction=True, foreach=True, **option), a, range(10))
    drive(torch.optim.Adam(b, lr=0.01, **option), b, range(10))
    torch.testing.assert_close(flat(a), flat(b), rtol=1e-5, atol=1e-6)


def test_after_the_freeze_it_is_preconditioned_momentum() -> None:
    params = list(module().parameters())
    own = onebit(params, v_floor=0.0)
    drive(own, params, range(5))
    x, state = flat(params).double(), own.state_dict()["state"]
    m, d = (torch.cat([state[i][k].view(-1) for i in state]).double() for k in ("exp_avg", "denominator"))
    drive(own, params, range(5, 9))
    for step in range(5, 9):
        m = 0.9 * m + 0.1 * flat(gradients(step)).double()
        x -= 0.01 * m / d
    torch.testing.assert_close(flat(params).double(), x, rtol=1e-6, atol=1e-6)


def test_dead_elements() -> None:
    """An element without a gradient in the warm-up and with one after it: the floor bounds its step."""
    ends = {}
    for floor in (1e-3, 0.0):
        p = nn.Parameter(torch.zeros(100))
        own = OneBitAdam([p], lr=1e-3, freeze=20, v_floor=floor)
        for step in range(21):
            p.grad = torch.randn(100, generator=torch.Generator().manual_seed(step))
            p.grad[:50] = 1e-3 if step == 20 else 0.0
            own.step()
        ends[floor] = float(p.detach()[:50].abs().max())
    assert ends[1e-3] < 2e-3  # lr (1 - b1) 1e-3 / (1e-3 rms), with rms = 0.7 of some 0.14
    assert ends[0.0] > 5.0  # lr (1 - b1) 1e-3 / eps


def test_a_parameter_that_was_dead_moves_like_the_others() -> None:
    a, b = nn.Parameter(torch.zeros(8)), nn.Parameter(torch.zeros(50))
    own = OneBitAdam([a, b], lr=1e-3, freeze=20)
    for step in range(30):
        a.grad = torch.full((8,), 0.0 if step < 20 else 1.0)
        b.grad = torch.randn(50, generator=torch.Generator().manual_seed(step))
        own.step()
    assert 0 < float(a.detach().abs().max()) < 0.1


def test_groups_and_schedules() -> None:
    """Rates and decay of their own, changed in either phase; equal to two optimizers."""
    one, two = module(), module()
    groups = [{"params": [one.a], "lr": 0.02}, {"params": [one.b, one.c], "weight_decay": 0.1, "betas": (0.8, 0.99)}]
    own = onebit(groups)
    apart = [onebit([two.a], lr=0.02), onebit([two.b, two.c], weight_decay=0.1, betas=(0.8, 0.99))]
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


def test_the_freeze_waits_for_the_rate() -> None:
    params = list(module().parameters())
    own = onebit(params, freeze=3)
    schedule = torch.optim.lr_scheduler.LambdaLR(own, lambda t: min(1.0, (t + 1) / 6))
    for step in range(10):
        drive(own, params, range(step, step + 1))
        schedule.step()
    assert own.frozen_at == 7  # the rate of the sixth step is the last that rose


def test_auto_waits_until_the_variance_is_stable() -> None:
    params = list(module().parameters())
    own = onebit(params, freeze="auto", betas=(0.9, 0.98))  # a window of 50 steps
    drive(own, params, range(60))
    assert own.frozen_at is None
    drive(own, params, range(60, 400))
    assert own.frozen_at is not None and 100 <= own.frozen_at < 400
    late = list(module().parameters())
    rising = onebit(late, freeze="auto", betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(rising, lambda t: 1.0 + min(t, 300) / 300)
    for step in range(330):
        drive(rising, late, range(step, step + 1))
        schedule.step()
    assert rising.frozen_at is None


@pytest.mark.parametrize("factor", [1.01, 0.99])
def test_auto_sees_a_variance_that_grows_or_falls(factor: float) -> None:
    p = nn.Parameter(torch.zeros(64))
    own = OneBitAdam([p], betas=(0.9, 0.98), freeze="auto")
    for step in range(400):
        p.grad = torch.randn(64, generator=torch.Generator().manual_seed(step)) * factor**step
        own.step()
    assert own.frozen_at is None


def test_auto_waits_until_an_early_spike_is_forgotten() -> None:
    p = nn.Parameter(torch.zeros(64))
    own = OneBitAdam([p], betas=(0.9, 0.98), freeze="auto")
    for step in range(1500):
        p.grad = torch.randn(64, generator=torch.Generator().manual_seed(step)) * (1.0 if step < 5 else 0.01)
        own.step()
    assert own.frozen_at is not None
    d = own.state_dict()["state"][0]["denominator"]
    assert 0.005 < float(d.mean()) < 0.02


def test_the_freeze_waits_for_a_variance() -> None:
    p = nn.Parameter(torch.zeros(8))
    own = OneBitAdam([p], lr=1e-3, freeze=2)
    for step in range(8):
        p.grad = torch.full((8,), 0.0 if step < 4 else 1e-3)
        own.step()
    assert own.frozen_at == 5 and float(p.detach().abs().max()) < 0.1


@pytest.mark.parametrize("kind", ["OneBitAdam", "ZeroOneAdam", "OneBitLamb"])
@pytest.mark.parametrize("how", ["step", "function"])
def test_a_compiled_step(kind: str, how: str) -> None:
    """torch.compile leaves the step as it is: its counters are no constants."""
    ends = []
    for compiled in (False, True):
        params = list(module().parameters())
        own = getattr(cc.optim, kind)(params, lr=0.01, freeze=3)

        def whole(own: Any = own) -> None:
            own.step()

        step = own.step if how == "step" else whole
        run = torch.compile(step, backend="eager") if compiled else step
        for t in range(8):
            for p, g in zip(params, gradients(t), strict=True):
                p.grad = g
            run()
        assert own.steps == 8 and own.frozen_at == 3
        ends.append(flat(params))
    assert torch.equal(ends[0], ends[1])


def test_empty_parameters() -> None:
    params = [nn.Parameter(torch.zeros(0)), nn.Parameter(torch.ones(5)), nn.Parameter(torch.zeros(0, 3))]
    own = onebit(params, freeze=2)
    for _ in range(4):
        for p in params:
            p.grad = torch.ones_like(p)
        own.step()
    assert own.frozen_at == 2 and float(params[1].detach()[0]) < 1.0


def test_onecycle_finds_its_betas() -> None:
    params = list(module().parameters())
    own = onebit(params)
    schedule = torch.optim.lr_scheduler.OneCycleLR(own, max_lr=0.02, total_steps=20)
    for step in range(15):
        drive(own, params, range(step, step + 1))
        schedule.step()
    assert own.frozen_at is not None and own.frozen_at > 5  # the rate rises at first
    assert own.param_groups[0]["betas"][0] != 0.9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_with_fp32_state(dtype: torch.dtype) -> None:
    params = list(module(dtype).parameters())
    own = onebit(params)
    drive(own, params, range(8))
    state = own.state_dict()["state"]
    assert all(t.dtype == torch.float32 for entry in state.values() for t in entry.values())
    assert all(p.dtype == dtype and torch.isfinite(p).all() for p in params)
    wide = list(module().parameters())
    other = onebit(wide)
    for step in range(8):
        for p, g in zip(wide, gradients(step), strict=True):
            p.grad = g.to(dtype).float()
        other.step()
    torch.testing.assert_close(flat(params).float(), flat(wide), rtol=0.02, atol=0.02)


def test_memory_formats_and_closures() -> None:
    """A channels_last convolution, and gradients in other orders than the parameter's."""
    torch.manual_seed(0)
    one = nn.Conv2d(3, 4, 3)
    two = copy.deepcopy(one).to(memory_format=torch.channels_last)
    owns = [onebit(m.parameters(), freeze=2) for m in (one, two)]
    for step in range(5):
        x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(step))

        def closure(m: nn.Module, o: OneBitAdam, x: Tensor = x) -> Tensor:
            o.zero_grad()
            loss = m(x).square().mean()
            loss.backward()
            return loss

        losses = [o.step(lambda m=m, o=o: closure(m, o)) for m, o in zip((one, two), owns, strict=True)]
        torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(one.weight, two.weight.contiguous(), rtol=1e-5, atol=1e-6)


def test_parameters_without_a_gradient_are_passed_over() -> None:
    m = module()
    own = onebit(m.parameters(), weight_decay=0.5, freeze=2)
    before = m.b.detach().clone()
    for step in range(5):
        g = gradients(step)
        m.a.grad, m.c.grad = g[0], g[2]
        own.step()
    assert torch.equal(m.b, before) and not own.state_dict()["state"][1]["exp_avg"].any()


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


def test_a_scaler_that_unscales() -> None:
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
    own = onebit(params)
    drive(own, params, range(at))
    saved = own.portable_state_dict() if merged else own.state_dict()
    cc.checkpoint.save(tmp_path / "o.pt", {"x": [p.detach() for p in params], "o": saved})
    drive(own, params, range(at, 12))
    read = cc.checkpoint.load(tmp_path / "o.pt")
    again = [nn.Parameter(x) for x in read["x"]]
    other = onebit(again, lr=0.5)
    other.load_state_dict(read["o"])
    assert other.frozen_at == (5 if at > 5 else None) and other.param_groups[0]["lr"] == 0.01
    drive(other, again, range(at, 12))
    assert torch.equal(flat(again), flat(params))


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
    with pytest.raises(ValueError, match=r"add_param_group: the warm-up is over"):
        own.add_param_group({"params": [nn.Parameter(torch.zeros(3))]})


def test_large_parameters_travel_in_pieces() -> None:
    from compcomm.optim.flat import MESSAGE, Flat

    shapes = [(5,), (MESSAGE + 70_000, 2), (300, 4), (MESSAGE,), (7,)]
    plan = Flat([[(str(i), nn.Parameter(torch.empty(s, device="meta"))) for i, s in enumerate(shapes)]])
    covered = [i for batch in plan.batches for a, b in batch.spans for i in (a, b)]
    assert covered[0] == 0 and covered[-1] == plan.numel and covered[1:-1:2] == covered[2::2]
    assert max(layout.numel for layout in plan.layouts) <= MESSAGE
    for batch in plan.batches:
        assert sum(p.numel() for part in batch.parts for p in part.params) == batch.stop - batch.start
        for layout in batch.layouts:
            assert layout.covers and all(s.offset % MESSAGE == 0 for s in layout.segments)
