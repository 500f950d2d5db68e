"""0/1 Adam between real processes, where it differs from the others: steps that a rank takes alone, silence between two
synchronisations, and bad steps, rates and checkpoints in between."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

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


@pytest.mark.parametrize("decay", [pytest.param(0.0, marks=pytest.mark.full), 0.1])
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


@pytest.mark.parametrize(("world", "ddp"), [(2, True), (4, False)])
def test_what_it_sends(two: Workers, four: Workers, world: int, ddp: bool) -> None:
    """Before the freeze gradients, in full or as a dry run says; after it that, and nothing at all in between."""
    layout = cc.Layout.of(SHAPES.items())
    for rank, (spoken, (early, late)) in enumerate((two if world == 2 else four).run(listens, ddp=ddp)):
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
        assert (early.steps, late.steps) == (FREEZE - 1, STEPS - FREEZE)
        assert early.bytes_sent == pytest.approx((3 * dense + 2 * coded) / 5)
        assert late.bytes_sent == pytest.approx(len(MEETINGS) * coded / (STEPS - FREEZE))


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
