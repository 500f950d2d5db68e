"""0/1 Adam between real processes, where it differs from the others: steps that a rank takes alone, silence between two
synchronisations, and bad steps, rates and checkpoints in between."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as DDP

import compcomm as cc
from compcomm.optim import ZeroOneAdam
from tests.optim.saved import tensors

from . import models
from .compressed import KINDS, LR, MEETINGS, advance, content, joined, make, moment
from .given import SHAPES, Given, gradients
from .harness import Workers

pytestmark = pytest.mark.multi
KIND = "ZeroOneAdam"
FREEZE, STEPS = KINDS[KIND].freeze, KINDS[KIND].steps
REFRESHES = [1, 2, 4, 6]


def replicated(own: ZeroOneAdam, name: str) -> Tensor:
    return joined(e[name] for e in own.state_dict()["state"].values())


def local(own: ZeroOneAdam, name: str) -> Tensor:
    """What this rank has for itself between two synchronisations."""
    return joined(tensors(own.state_dict(), SHAPES)[name if name == "anchor" else f"local {name}"].values())


def strides(rank: int, world: int, decay: float) -> Any:
    model, own = make(KIND, Given(), weight_decay=decay, local_step_scaler=1)
    advance(KIND, model, own, rank, range(FREEZE))
    worst, anchors = 0.0, []
    for step in range(FREEZE, STEPS):
        advance(KIND, model, own, rank, range(step, step + 1))
        if own.local_steps:
            anchors.append(local(own, "anchor"))
            update = local(own, "update") / replicated(own, "denominator")
            due = content(own)["local"]["shrunk"][0] * (anchors[-1] - update)
            worst = max(worst, float((models.flat(model) - due).abs().max()))
    own.detach()
    return worst, torch.stack(anchors)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_between_two_synchronisations(two: Workers, decay: float) -> None:
    """x_i = P (x_sync - u_i / denominator) on each rank, with the same x_sync on all."""
    results = two.run(strides, decay=decay)
    for worst, anchors in results:
        assert worst < 1e-6
        assert len(anchors) == 7 and torch.equal(anchors, results[0][1])


def overheard(attachment: Any, calls: list[Any]) -> Any:
    """Notes the collectives that an attachment begins, until the value is called."""
    transport, start = attachment.wire, attachment.wire.start

    def noted(collective: Any) -> Any:
        calls.append(collective)
        return start(collective)

    transport.start = noted
    return lambda: setattr(transport, "start", start)


def listens(rank: int, world: int, ddp: bool) -> Any:
    """Bytes sent and collectives begun by each step."""
    model, own = make(KIND, Given(), ddp)
    spoken: list[tuple[int, int]] = []
    reports = []
    for step in range(STEPS):
        attachments = [e.attachment for e in (own.exchange, own.dense) if e is not None]
        calls: list[Any] = []
        ends = [overheard(a, calls) for a in attachments]
        before = sum(a.steps.scheduler.sent for a in attachments)
        advance(KIND, model, own, rank, range(step, step + 1))
        spoken.append((sum(a.steps.scheduler.sent for a in attachments) - before, len(calls)))
        for end in ends:
            end()
        if step + 1 in (FREEZE - 1, STEPS):
            reports.append(own.report())
    own.detach()
    return spoken, reports


@pytest.mark.parametrize("ddp", [True, False])
def test_what_it_sends(two: Workers, four: Workers, ddp: bool) -> None:
    """Before the freeze gradients, in full or as a dry run says; after it that, and nothing at all in between."""
    layout = cc.Layout.of(SHAPES.items())
    for pool, world in ((two, 2), (four, 4)):
        for rank, (spoken, reports) in enumerate(pool.run(listens, ddp=ddp)):
            coded = cc.cost(cc.ErrorFeedback(cc.SignScale()), layout, world, rank).sent
            dense = cc.cost(cc.Exact(), layout, world, rank).sent
            for t, (sent, calls) in enumerate(spoken, 1):
                if t <= FREEZE:
                    assert calls > 1
                    assert sent == (dense if t in REFRESHES else coded) or t == FREEZE  # then counting begins anew
                elif t in MEETINGS:
                    assert sent == coded and calls > 0
                else:
                    assert sent == 0 and calls == 0
            early, late = reports
            assert (early.steps, late.steps) == (FREEZE - 1, STEPS - FREEZE)
            assert early.bytes_sent == pytest.approx((3 * dense + 2 * coded) / 5)
            assert late.bytes_sent == pytest.approx(len(MEETINGS) * coded / (STEPS - FREEZE))


def stumbles(rank: int, world: int, when: int, ddp: bool, scaled: range) -> Any:
    """One rank's gradient is infinite in one step; a scaler drives those of ``scaled``."""
    model, own = make(KIND, Given(), ddp, weight_decay=0.1)
    used, none = (torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=10000, enabled=e) for e in (True, False))
    met, unchanged = [], False
    for step in range(STEPS):
        own.zero_grad()
        given, scaler = gradients(rank, step), used if step in scaled else none
        if step == when:
            before = models.flat(model), copy.deepcopy(own.state_dict()), moment(own)
            if rank == 1:
                given["a"][0, 0] = float("inf")
        scaler.scale(model(given)).backward()
        scaler.step(own)
        scaler.update()
        if step == when:
            unchanged = torch.equal(models.flat(model), before[0]) and torch.equal(moment(own), before[2])
        if not own.local_steps:
            met.append((own.steps, models.flat(model), moment(own)))
    own.detach()
    return met, unchanged, own.steps, used.get_scale()


@pytest.mark.parametrize(
    ("when", "ddp", "scaled"),
    [
        pytest.param(when, ddp, scaled, marks=[] if (when + i) % 3 == 1 or (when, i) == (10, 2) else pytest.mark.full)
        for when in (1, 2, 10, 13)
        for i, (ddp, scaled) in enumerate(((True, True), (True, False), (False, True)))
    ],
)
def test_a_bad_gradient(two: Workers, when: int, ddp: bool, scaled: bool) -> None:
    """Before the freeze (in a refresh, in a compressed step) nobody's step counts. After it (in a local step, in a
    synchronising one) that rank's is left out, and all meet as they would have. Where scalers hear of it under DDP, all
    leave it out, and keep one scale."""
    results = two.run(stumbles, when=when, ddp=ddp, scaled=range(STEPS if scaled else 0))
    for rank, (met, unchanged, steps, _) in enumerate(results):
        assert steps == (STEPS - 1 if when < FREEZE else STEPS)
        assert unchanged == (when < FREEZE or (when == 10 and (rank == 1 or (ddp and scaled))))
        assert [t for t, *_ in met if t > FREEZE] == [t for t in MEETINGS if t <= steps]
        for one, other in zip(met, results[0][0], strict=True):
            assert torch.isfinite(one[1]).all()
            assert torch.equal(one[1], other[1]) and torch.equal(one[2], other[2])
    if scaled:
        assert [scale for *_, scale in results] == [32.0 if ddp else 64.0, 32.0]  # without DDP it is a rank's own


@pytest.mark.parametrize(("scaled", "heard"), [(range(8, STEPS), True), (range(9), False)])
def test_a_scaler_that_begins_or_ends_after_the_freeze(two: Workers, scaled: range, heard: bool) -> None:
    """The ranks agree on it when they synchronise: all leave a bad step out, or that rank alone."""
    results = two.run(stumbles, when=10, ddp=True, scaled=scaled)
    assert [unchanged for _, unchanged, *_ in results] == [heard, True]
    assert [scale for *_, scale in results] == [32.0 if heard else 64.0] * 2


def idles(rank: int, world: int, rate: float, clipper: int) -> Any:
    """A rate that falls for a while and rises again; and ranks without some gradients."""
    model, own = make(KIND, Given(), ddp=False, local_step_clipper=clipper)
    sizes = []
    for step in range(STEPS + 12):
        own.param_groups[0]["lr"] = rate * LR if 14 <= step < 18 else LR
        own.zero_grad()
        g = gradients(rank, step)
        if (step + rank) % 2:
            del g["b"]
        model(g).backward()
        own.step()
        sizes.append(float(moment(own).norm()))
    own.synchronise()
    end = models.flat(model), moment(own), sizes
    own.detach()
    return end


@pytest.mark.parametrize(
    ("rate", "clipper"), [(0.0, 1), (1e-6, 4), pytest.param(0.1, 1, marks=pytest.mark.full), (0.1, 4)]
)
def test_rates_that_fall_and_rise(three: Workers, rate: float, clipper: int) -> None:
    """What was not sent at the old rate does not blow up the momentum of the new one, nor is it lost at none."""
    results = three.run(idles, rate=rate, clipper=clipper)
    usual = results[0][2][13]
    for x, m, sizes in results:
        assert torch.isfinite(x).all() and torch.equal(x, results[0][0]) and torch.equal(m, results[0][1])
        assert all(0.5 * usual < size < 2 * usual for size in sizes[14:])


def likewise(rank: int, world: int, other: bool) -> Any:
    if other:
        model: nn.Module = DDP(Given(), bucket_cap_mb=0.004)
        own: Any = cc.optim.OneBitAdam(model, lr=LR, freeze=FREEZE, weight_decay=0.1, v_floor=0.1)
    else:
        model, own = make(KIND, Given(), weight_decay=0.1, var_update_scaler=16, local_step_clipper=1)
    found = []
    for step in range(STEPS):
        advance(KIND, model, own, rank, range(step, step + 1))
        found.append(models.flat(model))
    own.detach()
    return found


def test_without_schedules_it_is_1_bit_adam(three: Workers) -> None:
    for one, other in zip(*(three.run(likewise, other=other)[0] for other in (False, True)), strict=True):
        off = (one - other).abs() > 1e-5 + 1e-4 * other.abs()
        assert float(off.float().mean()) < 0.01


def returns(rank: int, world: int, ddp: bool) -> Any:
    model, own = make(KIND, Given(), ddp)
    advance(KIND, model, own, rank, range(3))
    x, saved = models.flat(model), own.state_dict()
    advance(KIND, model, own, rank, range(3, 17))
    due = models.flat(model)
    own.load_state_dict(saved)
    nn.utils.vector_to_parameters(x, model.parameters())
    advance(KIND, model, own, rank, range(3, 17))
    again = models.flat(model)
    own.detach()
    return due, again


@pytest.mark.parametrize("ddp", [True, False])
def test_going_back_before_the_freeze(two: Workers, ddp: bool) -> None:
    for due, again in two.run(returns, ddp=ddp):
        assert torch.equal(due, again)


def hurries(rank: int, world: int) -> Any:
    model, own = make(KIND, Given())
    advance(KIND, model, own, rank, range(15 + rank))
    told = models.caught(own.synchronise), models.caught(own.portable_state_dict)
    advance(KIND, model, own, rank, range(15 + rank, STEPS))
    end = models.flat(model)
    own.detach()
    return told, end


def test_a_synchronisation_at_different_steps(two: Workers) -> None:
    results = two.run(hurries)
    for told, end in results:
        for kind, message, _ in told:
            assert kind == "AgreementError" and "steps: 15 on rank 0, 16 on rank 1" in message
        assert torch.equal(end, results[0][1])
