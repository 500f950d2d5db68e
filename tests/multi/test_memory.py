"""Memory that survives: exact per rank, merged for another number of workers, through files and through torch's own
distributed checkpoints."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import compcomm as cc

from . import given, models
from .given import Given, gradients
from .harness import Workers

pytestmark = pytest.mark.multi

EF = "ErrorFeedback(TopK(ratio=0.05))"
QUANTISED = "ErrorFeedback(QSGD(bits=4, rounding='nearest'))"
SPARSE = "ErrorFeedback(SparseAllReduce(TopK(ratio=0.05)))"
PARTS = f"Partition({{'a': {QUANTISED}, 'b': {SPARSE}, '*': Exact()}})"
VELOCITY = "DGC(QSGD(bits=4, rounding='nearest'), momentum=0.0, masking=False)"
SHAPES = {n: given.SHAPES[n] for n in "abc"}


def advance(model: Any, rank: int, steps: range) -> dict[str, Tensor]:
    """The sum of what was applied."""
    applied = {n: torch.zeros(shape, dtype=torch.float64) for n, shape in SHAPES.items()}
    for step in steps:
        model.zero_grad()
        model(gradients(rank, step, SHAPES)).backward()
        for n, p in model.module.named_parameters():
            applied[n] += p.grad
    return applied


def stage(rank: int, world: int, reducer: str, first: int, last: int, source: str, target: str) -> Any:
    """Steps of a run that was begun by another number of workers, and goes on with yet another."""
    model, attachment = models.wrap(Given(shapes=SHAPES), cc.parse(reducer), megabytes=0.01, seed=3)
    if source:
        attachment.load_portable_state_dict(cc.checkpoint.load(source))
    began = attachment.step
    applied = advance(model, rank, range(first, last))
    state = attachment.portable_state_dict()
    if rank == 0:
        cc.checkpoint.save(target, state)
    return applied, models.slots(attachment), state, (began, attachment.step), repr(attachment.reducer)


def remembered(reducer: str, slots: list[Any], name: str) -> Tensor:
    """Mean residual plus owners' residuals of one parameter, from the ranks' exact states."""
    settled = cc.settle(cc.parse(reducer), len(slots))
    total = torch.zeros(SHAPES[name], dtype=torch.float64).view(-1)
    for own in slots:
        for slot in ("residual", "velocity"):
            if name in own.get(slot, {}):
                total += own[slot][name].double() / len(slots)
    owed = [own["server"][name] for own in slots if name in own.get("server", {})]
    if owed:
        segment = cc.Segment(name, SHAPES[name], 0, total.numel())
        total += settled.slots(segment, len(owed))["server"].natural(torch.cat(owed)).double()
    return total.view(SHAPES[name])


@pytest.mark.turns(2, first=1)
@pytest.mark.parametrize("reducer", [EF, QUANTISED, SPARSE, PARTS, VELOCITY, "PowerSGD(2)"])
def test_four_workers_then_two_then_three_lose_nothing(
    two: Workers, three: Workers, four: Workers, tmp_path: Path, reducer: str
) -> None:
    left = {n: torch.zeros(shape, dtype=torch.float64) for n, shape in SHAPES.items()}
    source, at, routes = "", 0, list[str]()
    for world, pool in ((4, four), (2, two), (3, three)):
        target = str(tmp_path / f"{world}.pt")
        results = pool.run(stage, reducer=reducer, first=at, last=at + 5, source=source, target=target)
        for n in SHAPES:
            for step in range(at, at + 5):
                left[n] += torch.stack([gradients(rank, step, SHAPES)[n] for rank in range(world)]).double().mean(0)
            left[n] -= results[0][0][n]
            held = remembered(reducer, [r[1] for r in results], n)
            assert (left[n] - held).abs().max() < 2e-4, (n, world)
            pending = "velocity" if reducer == VELOCITY else "residual"
            merged = results[0][2]["slots"].get(pending, {}).get(n, torch.zeros(SHAPES[n]))
            assert merged.shape == SHAPES[n]
            assert (left[n] - merged).abs().max() < 2e-4, (n, world)
            assert left[n].abs().max() > 0.01 or n == "c", "nothing is pending: the test shows nothing"
        for _, _, state, steps, _ in results:
            assert steps == (at, at + 5)
            assert all(torch.equal(t, results[0][2]["slots"][s][n]) for s, e in state["slots"].items() for n, t in
                       e.items())  # fmt: skip
            assert "server" not in state["slots"]
        routes.append(results[0][4])
        source, at = target, at + 5
    if reducer == QUANTISED:
        assert ["TwoPhase" in r for r in routes] == [True, False, True]


@pytest.mark.parametrize("reducer", ["EF21(QSGD(bits=4, rounding='nearest'))", "EControl(TopK(ratio=0.05))"])
def test_estimates_stay_together_whatever_the_number_of_workers(
    two: Workers, three: Workers, four: Workers, tmp_path: Path, reducer: str
) -> None:
    """What owners keep (EF21-BC, among 4 and 3) is part of the mean, so it is the mean of h among two as well."""
    source, at = "", 0
    for world, pool in ((4, four), (2, two), (3, three)):
        target = str(tmp_path / f"{world}.pt")
        results = pool.run(stage, reducer=reducer, first=at, last=at + 4, source=source, target=target)
        slots = results[0][2]["slots"]
        for n in ("a", "b"):
            assert (slots["mean"][n] - slots["estimate"][n]).abs().max() < 2e-5 < slots["mean"][n].abs().max()
        source, at = target, at + 4


def test_weights_are_those_of_the_workers_there_are(two: Workers, three: Workers, tmp_path: Path) -> None:
    """EF21-W's weights belong to a number of workers, and the checkpoint does not."""
    text = "EF21(TopK(ratio=0.05), weights={}, momentum=0.5)"
    first, second = str(tmp_path / "first.pt"), str(tmp_path / "second.pt")
    begun = two.run(stage, reducer=text.format((0.25, 0.75)), first=0, last=4, source="", target=first)
    went_on = three.run(stage, reducer=text.format((0.5, 0.2, 0.3)), first=4, last=6, source=first, target=second)
    assert [r[3] for r in (*begun, *went_on)] == [(0, 4)] * 2 + [(4, 6)] * 3
    for result in (begun[0], went_on[0]):
        slots = result[2]["slots"]
        for n in ("a", "b"):
            assert (slots["mean"][n] - slots["estimate"][n]).abs().max() < 1e-5, "m is the weighted mean of h"


def reported(rank: int, world: int, reducer: str) -> Any:
    model, attachment = models.wrap(Given(shapes=SHAPES), cc.parse(reducer), megabytes=0.01)
    advance(model, rank, range(3))
    return attachment.report().relative_error


def test_the_report_reads_residuals_in_any_form(two: Workers) -> None:
    kinds = (EF, EF[:-1] + ", dtype=int8)", EF[:-1] + ", dtype=bfloat16)")
    plain, *coded = (two.run(reported, reducer=text)[0] for text in kinds)
    (mixed, _) = two.run(reported, reducer=f"Partition({{'a': {kinds[1]}, '*': {kinds[0]}}})")
    assert plain["c"] is None and 0.5 < plain["a"] < 1
    for found in (*coded, mixed):
        assert found["c"] is None
        assert abs(found["a"] - plain["a"]) < 0.01 and abs(found["b"] - plain["b"]) < 0.01


def saved_by_torch(rank: int, world: int, reducer: str, folder: str) -> Any:
    import torch.distributed.checkpoint as dcp

    model, attachment = models.wrap(Given(shapes=SHAPES), cc.parse(reducer), megabytes=0.01)
    advance(model, rank, range(5))
    exact, merged = attachment.state_dict(), attachment.portable_state_dict()
    dcp.save({"hook": exact, "merged": merged}, checkpoint_id=folder)
    on = advance(model, rank, range(5, 8))

    again, second = models.wrap(Given(shapes=SHAPES), cc.parse(reducer), megabytes=0.01)
    blank = {"hook": second.state_dict(), "merged": second.portable_state_dict()}
    dcp.load(blank, checkpoint_id=folder)
    second.load_portable_state_dict(blank["merged"])
    third = models.slots(second)
    second.load_state_dict(blank["hook"])
    resumed = models.slots(second)
    alike = all(torch.equal(resumed[s][n], t) for s, e in models.own(exact)["slots"].items() for n, t in e.items())
    after = advance(again, rank, range(5, 8))
    mean = all(torch.equal(third["residual"][n], t.view(-1)) for n, t in merged["slots"]["residual"].items())
    return alike, mean, all(torch.equal(on[n], after[n]) for n in on), second.step


@pytest.mark.parametrize("reducer", [EF, QUANTISED])
def test_torchs_distributed_checkpoint_keeps_both_forms(three: Workers, tmp_path: Path, reducer: str) -> None:
    for alike, mean, same, step in three.run(saved_by_torch, reducer=reducer, folder=str(tmp_path)):
        assert alike, "a rank's own residual comes back, not another's"
        assert mean
        assert same
        assert step == 8


def peak(rank: int, world: int, shapes: list[tuple[str, tuple[int, ...]]]) -> Any:
    """Bytes that the process grew by at most while it merged, against those of its state and of the result."""
    attachment = models.wrap(models.Shapes(shapes), cc.parse(QUANTISED), megabytes=25)[1]
    store = attachment.setup.store
    for entry in store.entries():
        entry.tensor.fill_(rank + 1.0)
    ctypes.CDLL(None).malloc_trim(0)  # what lies free would be used again, and hide what is needed
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM, the peak, becomes what is resident now
    before = memory("VmRSS")
    state = attachment.portable_state_dict()
    grown = memory("VmHWM") - before
    values = {float(t.view(-1)[at]) for t in state["slots"]["residual"].values() for at in (0, -1)}
    return store.nbytes(), sum(t.numel() * 4 for t in state["slots"]["residual"].values()), grown, values


def memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def test_merging_needs_one_copy_beside_the_running_state(four: Workers) -> None:
    shapes = [(f"w{i}", (1024, 2048)) for i in range(9)] + [("head", (1024, 1024))]
    for held, result, grown, values in four.run(peak, timeout=100, shapes=shapes):
        assert held >= 1.24 * 80e6, "residuals and a quarter of the owners'"
        assert result == 4 * 19_922_944
        assert grown >= 0.95 * result, "the measurement sees the result itself"
        assert held + grown <= 2 * held
        assert grown <= result + 8e6
        assert values <= {2.5 + rank for rank in (1, 2, 3, 4)}, "the mean residual and one owner's"


def refuses(rank: int, world: int) -> Any:
    model, attachment = models.wrap(Given(shapes=SHAPES), cc.parse(EF), megabytes=0.01)
    advance(model, rank, range(3))
    good = attachment.portable_state_dict()
    before, slots = models.own(attachment.state_dict()), good["slots"]
    residual = slots["residual"]
    wrong: dict[str, Any] = {
        "reducer": {**good, "reducer": "Exact()"},
        "seed": {**good, "seed": 4},
        "step": {**good, "step": 1.5},
        "negative": {**good, "step": -1},
        "slots": {**good, "slots": [1]},
        "slot": {**good, "slots": {"residual": 5}},
        "exact": attachment.state_dict(),
        "model": model.module.state_dict(),
        "missing": {**good, "slots": {"residual": {"a": residual["a"]}}},
        "none": {**good, "slots": {}},
        "unknown": {**good, "slots": {"residual": {**residual, "z": residual["a"]}}},
        "other slot": {**good, "slots": {**slots, "momentum": residual}},
        "shape": {**good, "slots": {"residual": {**residual, "b": residual["b"].t()}}},
        "dtype": {**good, "slots": {"residual": {**residual, "b": residual["b"].double()}}},
        "text": {**good, "slots": {"residual": {**residual, "b": "0.5"}}},
    }
    told = {n: models.caught(lambda s=s: attachment.load_portable_state_dict(s)) for n, s in wrong.items()}
    after = models.own(attachment.state_dict())
    same = all(torch.equal(before["slots"]["residual"][n], t) for n, t in after["slots"]["residual"].items())
    crossed = models.caught(lambda: attachment.load_state_dict(good))
    if rank == 0:
        attachment.steps.scheduler.number += 1
    apart = models.caught(attachment.portable_state_dict)
    return told, same and before["step"] == after["step"], crossed, apart


def test_a_foreign_portable_state_changes_nothing(two: Workers) -> None:
    said = {
        "reducer": "reducer is 'Exact()' in the checkpoint and 'ErrorFeedback(TopK(ratio=0.05))' here",
        "seed": "seed is 4 in the checkpoint and 0 here",
        "step": "step=1.5",
        "negative": "step=-1",
        "slots": "the slots are not what was saved",
        "slot": "slot 'residual' is a int, no dictionary",
        "exact": "load_state_dict() takes them",
        "model": "give what attachment.portable_state_dict() returned",
        "missing": "'residual' of 'b' is missing in the checkpoint",
        "none": "'residual' of 'a' is missing in the checkpoint",
        "unknown": "'residual' of 'z' is in the checkpoint and has no place here",
        "other slot": "'momentum' of 'a' is in the checkpoint and has no place here",
        "shape": "'residual' of 'b' has shape [65, 40] and torch.float32 where [40, 65]",
        "dtype": "torch.float64 where [40, 65] and torch.float32 are due",
        "text": "'residual' of 'b' is a str, not a tensor",
    }
    for told, same, crossed, apart in two.run(refuses):
        for name, text in said.items():
            assert told[name][0] == "StateError", (name, told[name])
            assert text in told[name][1], (name, told[name])
        assert same
        assert "Give it to load_portable_state_dict()" in crossed[1]
        assert apart[0] == "AgreementError"
        assert apart[1].startswith("portable_state_dict: the ranks are not in the same state. step: 4 on rank 0")
        assert "Call it on every rank at the same step" in apart[1]


def schedules(rank: int, world: int) -> Any:
    """Rates 1/2, then 1/4, then 1: error feedback with the rate inside its memory, and with ``rescale_error``."""
    rates = [0.5] * 4 + [0.25] * 4 + [1.0] * 4
    model, attachment = models.wrap(Given(shapes=SHAPES), cc.parse(EF), megabytes=0.01)
    ours = {n: torch.zeros(shape) for n, shape in SHAPES.items()}
    for step, rate in enumerate(rates):
        if step and rate != rates[step - 1]:
            attachment.rescale_error(rates[step - 1], rate)
        applied = advance(model, rank, range(step, step + 1))
        for n in SHAPES:
            ours[n] -= (rate * applied[n]).float()
    simulator = cc.Simulator(cc.parse(EF), world)
    inside = {n: torch.zeros(shape) for n, shape in SHAPES.items()}
    for step, rate in enumerate(rates):
        sent = simulator.mean([{n: rate * g for n, g in gradients(r, step, SHAPES).items()} for r in range(world)])
        for n in SHAPES:
            inside[n] -= sent[0][n]
    bad = [models.caught(lambda a=a, b=b: attachment.rescale_error(a, b)) for a, b in ((0, 1), (1, -1), (1, "x"))]
    return ours, inside, bad


def test_rescaling_is_the_form_with_the_rate_inside(two: Workers) -> None:
    for ours, inside, bad in two.run(schedules):
        for n in SHAPES:
            assert torch.equal(ours[n], inside[n]), "powers of two: to the bit"
        for kind, message, _ in bad:
            assert kind == "ValueError"
            assert "is not a positive number" in message


def through_the_form_of_pytorch(rank: int, world: int) -> Any:

    model, state = models.unbound(Given(shapes=SHAPES), cc.parse(EF), megabytes=0.01)
    unnamed = models.caught(state.portable_state_dict)
    state.bind(model)
    advance(model, rank, range(3))
    saved = state.portable_state_dict()
    state.rescale_error(1.0, 2.0)
    halved = state.portable_state_dict()
    state.load_portable_state_dict(saved)
    return unnamed, saved, halved, models.slots(state)


def test_ddp_state_has_the_same_calls(two: Workers) -> None:
    for unnamed, saved, halved, slots in two.run(through_the_form_of_pytorch):
        assert unnamed[0] == "StateError"
        assert "bind(model)" in unnamed[1]
        for n, t in saved["slots"]["residual"].items():
            assert torch.equal(halved["slots"]["residual"][n], t / 2)
            assert torch.equal(slots["residual"][n], t.view(-1))
