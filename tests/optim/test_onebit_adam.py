"""1-bit Adam on one rank: the formulas, and a warm-up whose end is found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compcomm.optim import OneBitAdam
from tests.reference import onebit_adam as page

from .alone import drive, flat, gradients, make, moments, parameters


def onebit(params: Any, **options: Any) -> OneBitAdam:
    return make("OneBitAdam", params, **{"freeze": 5, **options})


@pytest.mark.parametrize("correction", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_page(correction: bool, decay: float) -> None:
    params = parameters()
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
    a, b = (parameters() for _ in range(2))
    own = onebit(a, freeze=1000, bias_correction=True, weight_decay=0.1)
    drive(own, a, range(20))
    drive(torch.optim.AdamW(b, lr=0.01, weight_decay=0.1), b, range(20))
    torch.testing.assert_close(flat(a), flat(b), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("option", [{"maximize": True}, {"weight_decay": 0.1, "decoupled_weight_decay": False}])
def test_the_options_of_adam(option: dict[str, Any]) -> None:
    a, b = (parameters() for _ in range(2))
    drive(onebit(a, freeze=1000, bias_correction=True, foreach=True, **option), a, range(10))
    drive(torch.optim.Adam(b, lr=0.01, **option), b, range(10))
    torch.testing.assert_close(flat(a), flat(b), rtol=1e-5, atol=1e-6)


def test_after_the_freeze_it_is_preconditioned_momentum() -> None:
    params = parameters()
    own = onebit(params, v_floor=0.0)
    drive(own, params, range(5))
    x, m, d = flat(params).double(), moments(own, "exp_avg").double(), moments(own, "denominator").double()
    drive(own, params, range(5, 9))
    for step in range(5, 9):
        m = 0.9 * m + 0.1 * flat(gradients(step)).double()
        x -= 0.01 * m / d
    torch.testing.assert_close(flat(params).double(), x, rtol=1e-6, atol=1e-6)


def test_auto_waits_until_the_variance_is_stable() -> None:
    params = parameters()
    own = onebit(params, freeze="auto", betas=(0.9, 0.98))  # a window of 50 steps
    drive(own, params, range(60))
    assert own.frozen_at is None
    drive(own, params, range(60, 400))
    assert own.frozen_at is not None and 100 <= own.frozen_at < 400
    late = parameters()
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


def test_onecycle_finds_its_betas() -> None:
    params = parameters()
    own = onebit(params)
    schedule = torch.optim.lr_scheduler.OneCycleLR(own, max_lr=0.02, total_steps=20)
    for step in range(15):
        drive(own, params, range(step, step + 1))
        schedule.step()
    assert own.frozen_at is not None and own.frozen_at > 5  # the rate rises at first
    assert own.param_groups[0]["betas"][0] != 0.9


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
