"""A model of ``fully_shard`` with a reducer, on real processes: the numbers. Exact() is stock FSDP2 to the bit, nothing
is lost where it is fed back, and FSDP divides as its user says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy

from . import sharded
from .harness import Workers
from .sharded import EF4, fully_shard

pytestmark = pytest.mark.multi


def exact(rank: int, world: int, steps: int, policies: list[Any]) -> Any:
    """Stock FSDP2 and Exact(), by mixed precision; what was sent in fp32, and what stock would have sent."""
    told: list[Any] = []
    for policy in policies:
        options = {} if policy is None else {"mp_policy": MixedPrecisionPolicy(*policy)}
        found: list[Any] = []
        for reducer in (None, "Exact()"):
            model = sharded.shard(sharded.net(), **options)
            hook = sharded.attach(model, reducer) if reducer else None
            found.append((sharded.train(model, rank, range(steps))[0], sharded.whole(model)))
        assert hook is not None and hook.step == steps
        sent, due = hook.report().bytes_sent, sharded.row_bytes(model, world, 2 if policy and not policy[1] else 4)
        same = found[0][0] == found[1][0] and sharded.same(found[0][1], found[1][1])
        told.append((same, sent / due, hook.report().state_bytes))
    return told


HALF = [(torch.bfloat16, None), (torch.bfloat16, torch.float32), (torch.float16, None)]


def test_exact_is_stock_to_the_bit(two: Workers, four: Workers) -> None:
    for told in two.run(exact, steps=50, policies=[None]) + four.run(exact, steps=50, policies=[None]):
        assert told == [(True, pytest.approx(1, abs=0.01), 0)]


def test_exact_is_stock_in_half_precision(two: Workers) -> None:
    for told in two.run(exact, steps=5, policies=[None, *HALF]):
        assert told == [(True, pytest.approx(1, abs=0.01), 0)] * 4


def conserving(rank: int, world: int) -> Any:
    """Means and memory of six passes over a model that stays as it is."""
    model = sharded.shard(sharded.net())
    hook = sharded.attach(model, EF4)
    means: list[Any] = []
    for step in range(6):
        sharded.loss_of(model, rank, step).backward()
        means.append(sharded.grads(model))
    off = sharded.gap(means, hook, [sharded.mean_gradients(world, step) for step in range(6)])
    store = hook.setup.store
    held = sum(t.numel() * t.element_size() for slot in store.state_dict().values() for t in slot.values())
    due = 4 * sum(p.numel() for p in sharded.net().parameters() if p.dim() > 1)
    plain = sharded.shard(sharded.net())
    rotated = sharded.attach(plain, "Rotated(LloydMax(4))")
    sharded.train(plain, rank, range(2))
    report = hook.report()
    return off, held, due, report.state_bytes, store.nbytes(), rotated.report().state_bytes, report.bytes_sent


def test_what_is_not_sent_is_kept(four: Workers) -> None:
    for off, held, due, told, declared, rotated, sent in four.run(conserving):
        assert off < 1e-6
        assert held == due and declared == told >= held and rotated == 0
        assert sent < 0.4 * sharded.row_bytes(sharded.net(), 4)


def dividing(rank: int, world: int) -> Any:
    """Stock's parameters and ours, by the factor that a user sets, and when."""
    found: list[bool] = []
    for factor, when in ((None, ""), (1.0, "before"), (1.0, "after"), (3.0, "after")):
        both: list[Any] = []
        for reducer in (None, "Exact()"):
            model = sharded.shard(sharded.net())
            units = [model, *model.blocks]
            if reducer is None:
                for unit in units:
                    unit.set_force_sum_reduction_for_comms(True)  # Gloo knows no other factor
            if factor is not None and (reducer is None or when == "before"):
                for unit in units:
                    unit.set_gradient_divide_factor(factor)
            if reducer:
                sharded.attach(model, reducer)
                if when == "after":
                    for unit in units:
                        unit.set_gradient_divide_factor(factor)
            sharded.loss_of(model, rank, 0).backward()
            both.append(sharded.grads(model))
        found.append(sharded.same(*both))
    return found


def test_fsdp_divides_as_its_user_says(two: Workers) -> None:
    assert two.run(dividing) == [[True] * 4] * 2


class Gradients(nn.Module):
    """Its gradients are what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(16, 16))
        self.norm: Any = nn.Module()
        self.norm.bias = nn.Parameter(torch.zeros(16))

    def forward(self, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return (self.weight * weight).sum() + (self.norm.bias * bias).sum()


def overflowing(rank: int, world: int, reducer: str, scale: float, name: str) -> Any:
    """An infinity in one rank's gradient, of an element that rank 0's row has."""
    model = fully_shard(Gradients())
    scaler = torch.amp.GradScaler("cpu", init_scale=scale) if scale != 1 else None
    hook = sharded.attach(model, reducer, scaler=scaler)
    means, due, bad, met = list[Any](), list[Any](), list[Any](), False
    for step in range(3):
        drawn = [torch.randn(17, 16, generator=torch.Generator().manual_seed(10 * step + r)) for r in range(world)]
        mine = drawn[rank].clone()
        if step == 1 and rank == 1:
            mine[16 if name == "norm.bias" else 0, 0] = float("inf")
        loss = scale * model(mine[:16], mine[16])
        loss.backward()
        bad.append(hook.steps.current.bad)
        found = sharded.grads(model)
        met = met or any(not bool(t.isfinite().all()) for t in found.values())
        if step != 1:
            means.append({"weight": found["weight"] / scale})
        elif name == "weight":  # an infinity cannot be kept: it is lost
            drawn[1][0, 0] = 0
        due.append({"weight": torch.stack(drawn).mean(0)[:16]})
    held = hook.setup.store.state_dict()["residual"]
    finite = all(bool(t.isfinite().all()) for t in held.values())
    return bad, met, finite, sharded.gap(means, hook, due)


PARTED = f"Partition({{'norm.*': Exact(), '*': {EF4}}})"


@pytest.mark.parametrize("reducer, scale, name", [(EF4, 1.0, "weight"), (PARTED, 8.0, "norm.bias")])
def test_an_overflow_on_one_rank_is_a_bad_step_on_all(two: Workers, reducer: str, scale: float, name: str) -> None:
    for bad, met, finite, off in two.run(overflowing, reducer=reducer, scale=scale, name=name):
        assert bad == [False, True, False] and met and finite and off < 1e-6
