"""What every compressed optimizer keeps to on one rank: what a torch optimizer is expected to live with."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import compcomm as cc
from tests.multi.compressed import KINDS

from .alone import content, drive, flat, give, gradients, make, module, overflow, parameters, restore
from .saved import same, tensors

every = pytest.mark.parametrize("kind", cc.optim.__all__)
onebit = pytest.mark.parametrize("kind", ["OneBitAdam", "OneBitLamb"])


def steps(kind: str) -> range:
    return range(KINDS[kind].steps)


@every
def test_groups_and_schedules(kind: str) -> None:
    """Rates, decay and limits of their own, changed in every phase; equal to two optimizers."""
    one, two = module(), module()
    first: dict[str, Any] = {"lr": 0.02, **({"max_coeff": 0.15} if kind == "OneBitLamb" else {})}
    second: dict[str, Any] = {"weight_decay": 0.1, "betas": (0.8, 0.99)}
    own = make(kind, [{"params": [one.a], **first}, {"params": [one.b, one.c], **second}])
    apart = [make(kind, [two.a], **first), make(kind, [two.b, two.c], **second)]
    schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.9) for o in (own, *apart)]
    for step in steps(kind):
        for m in (one, two):
            give(m.parameters(), gradients(step))
        for o in (own, *apart, *schedules):
            o.step()
    assert own.frozen_at == KINDS[kind].freeze
    assert own.param_groups[0]["lr"] == pytest.approx(0.02 * 0.9 ** KINDS[kind].steps)
    assert torch.equal(flat(one.parameters()), flat(two.parameters()))


@every
def test_the_freeze_waits_for_the_rate(kind: str) -> None:
    params = parameters()
    own = make(kind, params, freeze=3)
    schedule = torch.optim.lr_scheduler.LambdaLR(own, lambda t: min(1.0, (t + 1) / 6))
    for step in range(10):
        drive(own, params, range(step, step + 1))
        schedule.step()
    assert own.frozen_at == 7  # the rate of the sixth step is the last that rose


@every
def test_maximizing_is_minimizing_the_opposite(kind: str) -> None:
    a, b = parameters(), parameters()
    drive(make(kind, a, maximize=True, weight_decay=0.1), a, steps(kind), -1.0)
    drive(make(kind, b, weight_decay=0.1), b, steps(kind))
    assert torch.equal(flat(a), flat(b))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@every
def test_other_precisions_with_fp32_state(kind: str, dtype: torch.dtype) -> None:
    params, wide = parameters(dtype), parameters()
    own, other = make(kind, params, weight_decay=0.1), make(kind, wide, weight_decay=0.1)
    for step in steps(kind)[:-1]:  # 0/1 Adam's ends between two synchronisations
        drive(own, params, range(step, step + 1))
        give(wide, [g.to(dtype) for g in gradients(step)])
        other.step()
    held = [t for e in own.state_dict()["state"].values() for t in e.values() if isinstance(t, Tensor)]
    local = tensors(own.state_dict(), "abc")
    held += local.get("local update", {}).values()
    assert all(t.dtype == torch.float32 for t in held)
    assert all(t.dtype == dtype for t in (*params, *local.get("anchor", {}).values()))
    rough = 0.02 if dtype != torch.float64 else 1e-5 if kind == "ZeroOneAdam" else 1e-6
    torch.testing.assert_close(flat(params).float(), flat(wide), rtol=rough, atol=rough)


@every
def test_memory_formats_and_closures(kind: str) -> None:
    """A channels_last convolution, and gradients in other orders than the parameter's."""
    torch.manual_seed(0)
    one = nn.Conv2d(3, 4, 3)
    two = copy.deepcopy(one).to(memory_format=torch.channels_last)
    owns = [make(kind, m.parameters()) for m in (one, two)]
    for step in steps(kind):
        x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(step))

        def closure(m: nn.Module, o: Any, x: Tensor = x) -> Tensor:
            o.zero_grad()
            loss = m(x).square().mean()
            loss.backward()
            return loss

        losses = [o.step(lambda m=m, o=o: closure(m, o)) for m, o in zip((one, two), owns, strict=True)]
        torch.testing.assert_close(losses[0], losses[1])
    close = 1e-5 if kind == "ZeroOneAdam" else 1e-6
    torch.testing.assert_close(one.weight, two.weight.contiguous(), rtol=1e-5, atol=close)


@every
def test_small_batches_and_empty_parameters(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut into small batches, with parameters of no and of one element between: the same bits."""
    from compcomm.optim import flat as plan

    ends = []
    for message in (plan.MESSAGE, 50):
        monkeypatch.setattr(plan, "MESSAGE", message)
        shapes = [(0, 3), (60,), ()]
        params = [nn.Parameter(torch.zeros(0)), *parameters(), *[nn.Parameter(torch.ones(s)) for s in shapes]]
        own = make(kind, params, weight_decay=0.1)
        assert len(own.flat.batches) == 1 or message == 50
        for step in steps(kind):
            give(params, [torch.zeros(0), *gradients(step), *map(torch.ones, shapes)])
            own.step()
        assert own.frozen_at == KINDS[kind].freeze
        ends.append(flat(params))
    assert torch.equal(ends[0], ends[1])


@every
def test_parameters_without_a_gradient_are_passed_over(kind: str) -> None:
    """In the warm-up, and after it where all others' momentum is sent in every step."""
    params = parameters()
    own = make(kind, params, weight_decay=0.5)
    before = params[1].detach().clone()
    for step in range(KINDS[kind].freeze + (0 if kind == "ZeroOneAdam" else 3)):
        a, _, c = gradients(step)
        give(params, [a, None, c])
        own.step()
    entry = own.state_dict()["state"][1]
    assert torch.equal(params[1], before) and not entry["exp_avg"].any()
    assert not entry["exp_avg_sq"].any() or kind != "OneBitLamb"  # the others' frozen one has a floor
    assert kind != "OneBitLamb" or own.coefficients["1"] == content(own)["trust"]["factor"][1] == 1.0


@pytest.mark.parametrize("when", [1, 4])
@every
def test_a_bad_step_changes_nothing(kind: str, when: int) -> None:
    """In the warm-up with a GradScaler; with compressed momentum or gradients also without."""
    params = parameters()
    own = make(kind, params)
    drive(own, params, range(when))
    before, state = flat(params).clone(), copy.deepcopy(own.state_dict())
    scaler = overflow(own, params)
    if when > 1:
        params[1].grad[0] = float("nan")  # type: ignore[index]
        own.step()
    assert torch.equal(flat(params), before) and scaler.get_scale() == 4.0
    assert same(state, own.state_dict())


@every
def test_a_scaler_that_unscales(kind: str) -> None:
    a, b = parameters(), parameters()
    one, two = make(kind, a), make(kind, b)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=1000)
    scaler.scale(torch.ones(()))
    for step in steps(kind):
        give(a, [64.0 * g for g in gradients(step)])
        if step % 2:
            scaler.unscale_(one)
        scaler.step(one)
        scaler.update()
        drive(two, b, range(step, step + 1))
    torch.testing.assert_close(flat(a), flat(b), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("merged", [False, True])
@every
def test_a_checkpoint_resumes_to_the_bit(kind: str, merged: bool, tmp_path: Any) -> None:
    """In every phase: 0/1 Adam's are refreshes, meetings (7 to 10, 12, 14), and the local steps between them."""
    limits: dict[str, Any] = {"factor_max": 1, "max_coeff": 10} if kind == "OneBitLamb" else {}
    for at in (3, 6, 8, 11, 14, 17) if kind == "ZeroOneAdam" else (3, 4, 8):
        params = parameters()
        own = make(kind, params, weight_decay=0.1, **limits)
        drive(own, params, range(at))
        saved = own.portable_state_dict() if merged else own.state_dict()
        assert (getattr(own, "local_steps", 0) > 0) == (not merged and at in (11, 17))
        cc.checkpoint.save(tmp_path / "o.pt", {"x": [p.detach() for p in params], "o": saved})
        drive(own, params, range(at, KINDS[kind].steps))
        read, again = cc.checkpoint.load(tmp_path / "o.pt"), parameters()
        other = make(kind, again, lr=0.5, **limits)
        other.load_state_dict(read["o"])
        restore(again, read["x"])  # the model's turn comes last
        freeze = KINDS[kind].freeze
        assert other.frozen_at == (freeze if at >= freeze else None) and other.param_groups[0]["lr"] == 0.01
        drive(other, again, range(at, KINDS[kind].steps))
        assert torch.equal(flat(again), flat(params)) and same(own.state_dict(), other.state_dict())


@every
def test_going_back(kind: str) -> None:
    """To the warm-up, and to the first step after it."""
    for back in (3, KINDS[kind].freeze + 1):
        params = parameters()
        own = make(kind, params)
        drive(own, params, range(back))
        saved, x = own.state_dict(), [p.detach().clone() for p in params]
        drive(own, params, range(back, KINDS[kind].steps - 1))
        due = flat(params)
        own.load_state_dict(saved)
        restore(params, x)
        assert own.steps == back and (own.frozen_at is None) == (back == 3)
        drive(own, params, range(back, KINDS[kind].steps - 1))
        assert torch.equal(flat(params), due)


@every
def test_parameters_added_during_the_warm_up(kind: str) -> None:
    one, two = module(), module()
    own, whole = make(kind, [one.a, one.b]), make(kind, two.parameters())
    for step in steps(kind):
        a, b, c = gradients(step)
        if step == 2:
            own.add_param_group({"params": [one.c]})
        give(one.parameters(), [a, b, c])
        give(two.parameters(), [a, b, c if step >= 2 else None])
        own.step()
        whole.step()
    assert torch.equal(flat(one.parameters()), flat(two.parameters()))
    with pytest.raises(ValueError, match=rf"{kind}.add_param_group: the warm-up is over"):
        own.add_param_group({"params": [nn.Parameter(torch.zeros(3))]})


@pytest.mark.parametrize("kind", ["OneBitAdam", "ZeroOneAdam"])
def test_dead_elements(kind: str) -> None:
    """An element without a gradient in the warm-up and with one after it: the floor bounds its step."""
    ends = {}
    for floor in (1e-3, 0.0):
        p = nn.Parameter(torch.zeros(100))
        own = getattr(cc.optim, kind)([p], lr=1e-3, freeze=20, v_floor=floor)
        for step in range(21):
            p.grad = torch.randn(100, generator=torch.Generator().manual_seed(step))
            p.grad[:50] = 1e-3 if step == 20 else 0.0
            own.step()
        ends[floor] = float(p.detach()[:50].abs().max())
    assert ends[1e-3] < 2e-3  # lr (1 - b1) 1e-3 / (1e-3 rms), with rms = 0.7 of some 0.14
    assert ends[0.0] > 5.0  # lr (1 - b1) 1e-3 / eps


@onebit
def test_a_parameter_that_was_dead_moves_like_the_others(kind: str) -> None:
    """So does one whose ratio was never measured, or lies at its limit."""
    a, b = nn.Parameter(torch.zeros(8)), nn.Parameter(torch.full((50,), 9.0))
    limits = {"min_coeff": 0.5, "max_coeff": 1.0} if kind == "OneBitLamb" else {}
    own = make(kind, [a, b], lr=1e-3, freeze=20, **limits)
    for step in range(30):
        a.grad = torch.full((8,), 0.0 if step < 20 else 1.0)
        b.grad = torch.randn(50, generator=torch.Generator().manual_seed(step))
        before = b.detach().clone()
        own.step()
        assert not torch.equal(before, b)
        assert not limits or step >= 20 or own.coefficients == {"0": 1.0, "1": 1.0}
    assert not limits or content(own)["trust"]["mean"] == [1.0, 1.0]
    assert 0 < float(a.detach().abs().max()) < 0.1


@pytest.mark.parametrize("how", ["step", "function"])
@every
def test_a_compiled_step(kind: str, how: str) -> None:
    """torch.compile leaves the step as it is: its counters are no constants."""
    ends = []
    for compiled in (False, True):
        params = parameters()
        own = make(kind, params, freeze=3)

        def whole(own: Any = own) -> None:
            own.step()

        step = own.step if how == "step" else whole
        run = torch.compile(step, backend="eager") if compiled else step
        for t in range(8):
            give(params, gradients(t))
            run()
        assert own.steps == 8 and own.frozen_at == 3
        ends.append(flat(params))
    assert torch.equal(ends[0], ends[1])


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"lr": -1.0}, r"\(lr=-1.0\): a number, 0 or more"),
    ({"eps": -1e-8}, r"eps=-1e-08"),
    ({"eps": float("nan")}, r"eps=nan"),
    ({"weight_decay": -0.1}, r"weight_decay=-0.1"),
    ({"betas": (0.9, 1.0)}, r"betas=\(0.9, 1.0\)\): two numbers in \[0, 1\)"),
    ({"betas": (0.9,)}, r"betas=\(0.9,\)"),
    ({"amsgrad": True}, r"amsgrad=True\)"),
    ({"freeze": 0}, r"freeze=0"),
    ({"freeze": 2.5}, r"freeze=2.5"),
    ({"freeze": True}, r"freeze=True"),
    ({"freeze": "later"}, r"freeze='later'"),
    ({"v_floor": -1}, r"v_floor=-1\): a part of the root mean square"),
    ({"v_floor": 1.5}, r"v_floor=1.5"),
    ({"warmup": cc.ErrorFeedback(cc.TopK(0.01))}, r"warmup=.*keeps what it does not send.*Use Exact\(\)"),
    ({"compressor": cc.SignScale(scale="dot")}, r"no contraction.*Use SignScale\(scale='l1'\)"),
]


@every
def test_wrong_options(kind: str) -> None:
    for options, says in WRONG:
        with pytest.raises(ValueError, match=rf"({kind}|^ErrorFeedback).*{says}"):
            make(kind, parameters(), **options)


@every
def test_the_state_of_another_optimizer(kind: str) -> None:
    for other in {*cc.optim.__all__} - {kind}:
        with pytest.raises(cc.StateError, match=f"optimizer is '{other}' in the checkpoint and '{kind}' here"):
            make(kind, parameters()).load_state_dict(make(other, parameters()).state_dict())
