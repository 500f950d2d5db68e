"""What an attachment says while a step is open, after a resume, and before its parameters have names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as DDP

import compcomm as cc

from . import models
from .harness import Workers

pytestmark = pytest.mark.multi

EF = "ErrorFeedback(TopK(ratio=0.05))"


class Trap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise ArithmeticError("trapped")


class Trapped(nn.Module):
    """Raises in the middle of the backward pass while ``armed``."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after, self.armed = models.mlp(2), models.mlp(2, seed=1), False

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        return self.after(Trap.apply(x) if self.armed else x)


def resumes(rank: int, world: int) -> Any:
    model, attachment = models.wrap(models.mlp(), cc.parse(EF))
    models.train(model, models.batches(rank, 4))
    before = attachment.report().as_dict()
    ((place, saved),) = attachment.state_dict().items()
    attachment.load_state_dict({place: {**saved, "step": 10_000}})
    fresh = attachment.report().as_dict()
    models.train(model, models.batches(rank, 2))
    return before, fresh, attachment.report().as_dict(), attachment.step


def test_a_report_counts_from_the_resume_on(two: Workers) -> None:
    for before, fresh, after, step in two.run(resumes):
        assert step == 10_002
        assert (before["steps"], fresh["steps"], after["steps"]) == (4, 0, 2)
        assert fresh["bytes_sent"] == fresh["kernel_seconds"] == fresh["wire_seconds"] == fresh["exposed_seconds"] == 0
        assert after["bytes_sent"] == pytest.approx(before["bytes_sent"], rel=0.1)
        assert after["ratio"] == pytest.approx(before["ratio"], rel=0.1)
        assert after["kernel_seconds"] > before["kernel_seconds"] / 50
        assert after["wire_seconds"] > before["wire_seconds"] / 50


def stops_in_the_middle(rank: int, world: int) -> Any:
    module = Trapped()
    model, attachment = models.wrap(module, cc.parse(EF), megabytes=0.02)
    xs = models.batches(rank, 5)
    models.train(model, xs[:3])
    saved = attachment.state_dict()
    module.armed = True
    trapped = models.caught(lambda: models.train(model, xs[3:4]))
    told = [
        models.caught(attachment.state_dict),
        models.caught(lambda: attachment.load_state_dict(saved)),
        models.caught(lambda: attachment.steps.between("bind")),
    ]
    report = attachment.report()
    module.armed = False
    model.reducer._reset_state()
    models.train(model, [torch.zeros_like(xs[0])], lr=0.0)
    attachment.load_state_dict(saved)
    back = models.own(attachment.state_dict())
    models.train(model, xs[4:])
    saved = models.own(saved)
    same = all(torch.equal(saved["slots"]["residual"][n], t) for n, t in back["slots"]["residual"].items())
    return trapped, told, report.steps, report.relative_error, same, saved["step"] == back["step"], models.flat(model)


def test_an_open_step_is_no_time_for_checkpoints(two: Workers) -> None:
    results = two.run(stops_in_the_middle)
    for trapped, told, steps, errors, same_state, same_step, found in results:
        assert trapped[0] == "ArithmeticError"
        for call, (kind, message, _) in zip(("state_dict", "load_state_dict", "bind"), told, strict=True):
            assert kind == "StateError"
            assert message.startswith(f"{call}: step 3 has begun")
            assert "_reset_state() and one more backward pass on every rank" in message
        assert steps == 3
        assert errors == {}
        assert same_state
        assert same_step
        assert torch.equal(found, results[0][6])


def unnamed(rank: int, world: int) -> Any:
    told: list[Any] = []
    part = {"0.*": cc.Exact(), "*": cc.parse(EF)}
    cases: list[tuple[Any, int]] = [(cc.Partition(part), 0), (cc.Warmup(3, cc.Partition(part)), 0), (cc.Exact(), 2)]
    for reducer, every in cases:
        model, state = models.unbound(models.mlp(), reducer, check_every=every)
        told.append(models.caught(lambda m=model: models.train(m, models.batches(rank, 1))))
        model.reducer._reset_state()
        state.bind(model)
        models.train(model, models.batches(rank, 4))
        residuals = models.slots(state).get("residual", {})
        told.append((state.attachment.report().steps, sorted(residuals), len(state.attachment.setup.parameters)))
    return told


def test_what_needs_names_says_so_before_it_does_something_else(two: Workers) -> None:
    coded = ["1.weight", "2.weight", "3.weight"]
    for told in two.run(unnamed):
        for (kind, message, _), after, names in zip(told[::2], told[1::2], (coded, coded, []), strict=True):
            assert kind == "StateError"
            assert "Call state.bind(model) before the first backward pass" in message
            assert after == (4, names, 8)
        assert "check_every=2" in told[4][1]
        assert "Warmup(3, reducer=Partition(" in told[2][1]


def differ(rank: int, world: int) -> Any:
    model = DDP(models.mlp(), bucket_cap_mb=0.05)
    state = cc.DDPState(cc.Partition({"*": cc.Exact()}), timeout=15)
    if rank == 0:
        state.bind(model)
    model.register_comm_hook(state, cc.ddp_hook)
    return models.caught(lambda: models.train(model, models.batches(rank, 1)))


def test_names_that_one_rank_alone_lacks(two: Workers) -> None:
    bound, unbound = two.run(differ, timeout=30)
    assert bound[0] == "AgreementError"
    assert "rank 1 could not attach: StateError" in bound[1]
    assert unbound[0] == "StateError"


def loads_without_names(rank: int, world: int) -> Any:
    told: list[Any] = []
    for steps in (0, 2):
        model, state = models.unbound(models.mlp(), cc.parse(EF), timeout=15)
        models.train(model, models.batches(rank, steps))
        if rank == 0:
            state.bind(model)
        saved = state.state_dict() if rank == 0 and steps else {}
        told.append(models.caught(lambda s=state, d=saved: s.load_state_dict(d)))
    return told


def test_a_checkpoint_where_one_rank_lacks_names(two: Workers) -> None:
    bound, unbound = two.run(loads_without_names, timeout=40)
    assert [kind for kind, _, _ in (*bound, *unbound)] == ["AgreementError", "StateError", "StateError", "StateError"]
    assert all("load_state_dict: parameters have no names yet" in message for _, message, _ in (*bound, *unbound))


def warms_up(rank: int, world: int) -> Any:
    model, attachment = models.wrap(models.mlp().bfloat16(), cc.parse(f"Warmup(4, {EF})"))
    plain, _ = models.wrap(models.mlp().bfloat16())
    xs = [x.bfloat16() for x in models.batches(rank, 6)]
    found, expected = models.train(model, xs[:4]), models.train(plain, xs[:4])
    report = attachment.report()
    models.train(model, xs[4:])
    return found, expected, report.bytes_sent, report.bytes_dense, attachment.report().bytes_sent, models.flat(model)


def test_the_dense_steps_of_a_bfloat16_warmup_are_ddps(two: Workers) -> None:
    results = two.run(warms_up)
    for found, expected, sent, dense, mixed, end in results:
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=1e-3)
        assert sent == dense / 2
        assert mixed < sent
        assert torch.equal(end, results[0][5])


def registered(rank: int, world: int) -> Any:
    model = DDP(models.mlp())
    state = cc.DDPState(cc.parse(EF))
    said: list[str] = []
    for wrong in (state.report, lambda: setattr(state, "enabled", "no")):
        try:
            wrong()
        except (RuntimeError, TypeError) as error:
            said.append(str(error))
    state.enabled = False  # before the first step: kept for the attachment to come
    state.bind(model)
    model.register_comm_hook(state, cc.ddp_hook)
    models.train(model, models.batches(rank, 2))
    dense = state.report().ratio
    state.enabled = True
    models.train(model, models.batches(rank, 2))
    assert state.attachment is not None
    shown = repr(state.attachment)
    try:
        state.load_state_dict(model.state_dict())
    except cc.StateError as error:
        said.append(str(error))
    return said, dense, state.report().ratio, shown


def test_the_form_of_pytorch_has_the_same_switches(two: Workers) -> None:
    for rank, (said, dense, ratio, shown) in enumerate(two.run(registered)):
        assert "Ask after the first backward pass" in said[0] and "enabled = 'no'" in said[1]
        assert "Is it the model's?" in said[2]
        assert dense == pytest.approx(1.0) and ratio > 1.5
        assert f"rank {rank} of 2, step 4, at work" in shown
