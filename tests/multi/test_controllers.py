"""Controllers between real processes: the simulator's decisions and bits, checkpoints, errors, and 1-bit optimizers."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel as DDP

import compcomm as cc
from compcomm.adaptive import lgreco
from compcomm.core import structure
from compcomm.optim import OneBitAdam
from tests.optim.saved import same

from . import models
from .given import SHAPES, Given, cut, gradients, hooked, simulate
from .harness import Workers

pytestmark = pytest.mark.multi

STEPS = 24
REDUCERS = {
    "outside": "LGreCo(ErrorFeedback(TopK(ratio=0.02)), every=8)",
    "inside": "EF21(LGreCo(TopK(ratio=0.02), every=8), start=False)",
    "bits": "ErrorFeedback(LGreCo(QSGD(bits=4, rounding='nearest'), every=8, alpha=1.5))",
    "rank": "LGreCo(PowerSGD(2), every=8, window=2, alpha=1.1)",
    "parts": "Partition({'a': LGreCo(ErrorFeedback(TopK(ratio=0.02)), every=6), '*': LGreCo(PowerSGD(2), every=8)})",
}


def runs(rank: int, world: int, reducer: str) -> Any:
    module = Given()
    model, attachment = hooked(module, reducer, seed=3, find_unused_parameters=True)  # so that buckets stay
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found: list[Any] = []
    for step in range(STEPS):
        optimizer.zero_grad()
        model(gradients(rank, step)).backward()
        found.append({n: p.grad.clone() for n, p in module.named_parameters()})
        optimizer.step()
    return found, attachment.choices(), cut(attachment)


@pytest.mark.turns(2)
@pytest.mark.parametrize("name", REDUCERS)
def test_processes_decide_what_the_simulator_decides(three: Workers, name: str) -> None:
    reducer = cc.parse(REDUCERS[name])
    results = three.run(runs, reducer=REDUCERS[name])
    buckets = results[0][-1]
    assert len(buckets) >= 4
    steps = [[gradients(rank, t) for rank in range(3)] for t in range(STEPS)]
    means, simulator = simulate(reducer, 3, steps, buckets, seed=3)
    store = simulator.stores[0]
    due = structure.choices(simulator.reducer, store.segments(), store)
    plain = "PowerSGD" not in REDUCERS[name]  # else floats are added in another order
    for found, choices, _ in results:
        assert choices == due
        for mine, theirs in zip(found, means, strict=True):
            for n in SHAPES:
                off = float((mine[n] - theirs[n]).abs().max())
                assert off == 0 or (not plain and off < 1e-3), (n, off)
    assert set(due.values()) - {0.02, 2, 4}  # something was decided


def resumes(rank: int, world: int, reducer: str, at: tuple[int, ...]) -> Any:
    """A run's choices and last means, and those of the runs that go on from what it saved."""
    saved: dict[int, Any] = {STEPS: None}

    def go(model: Any, attachment: Any, steps: range) -> Any:
        for step in steps:
            if saved[STEPS] is None and step in at:
                saved[step] = attachment.state_dict()
            model.zero_grad()
            model(gradients(rank, step)).backward()
        return attachment.choices(), {n: p.grad.clone() for n, p in model.module.named_parameters()}

    due = saved[STEPS] = go(*hooked(Given(), reducer, seed=3), range(STEPS))
    ends = []
    for step in at:
        model, attachment = hooked(Given(), reducer, seed=3)
        attachment.load_state_dict(saved[step])
        ends.append(go(model, attachment, range(step, STEPS)))
    return due, ends


def test_a_checkpoint_between_measuring_and_deciding(two: Workers) -> None:
    for due, ends in two.run(resumes, reducer=REDUCERS["rank"], at=(8, 9, 11, 13)):
        assert all(same(due, end) for end in ends)


def shows(rank: int, world: int, reducer: str, steps: int) -> Any:
    model, attachment = hooked(Given(), reducer, seed=3)
    chosen = [attachment.choices()]
    for step in range(steps):
        model(gradients(rank, step)).backward()
        chosen.append(attachment.choices())
    return chosen, [t.seconds.tolist() for t in attachment.telemetry()], attachment.report().choices


@pytest.mark.parametrize("place", ["{}", "Partition({{'a': Exact(), '*': {}}})"])
def test_schedules_show_their_settings_too(two: Workers, place: str) -> None:
    reducer = place.format("ErrorFeedback(Steps(TopK(ratio=0.02), {0: 0.5, 2: 0.1}))")
    (chosen, seconds, reported), _ = two.run(shows, reducer=reducer, steps=3)
    assert [{*settings.values()} for settings in chosen] == [{0.5}, {0.5}, {0.1}, {0.1}]
    assert ("a" in chosen[0]) == (place == "{}")
    assert reported == chosen[-1] and seconds == []


def test_telemetry_has_the_seconds_of_each_setting(two: Workers) -> None:
    (_, mine, _), (_, theirs, _) = two.run(shows, reducer=REDUCERS["outside"], steps=8)
    assert mine == theirs, "equal on all ranks"
    assert len(mine[0]) == 9 and min(mine[0]) > 0


def fails(rank: int, world: int) -> Any:
    model, _ = hooked(Given(), "LGreCo(ErrorFeedback(TopK(ratio=0.02)), every=2, window=2, alpha=0.0001)")

    def go() -> None:
        for step in range(6):
            model(gradients(rank, step)).backward()

    return models.caught(go)


def test_a_budget_that_cannot_be_met_ends_the_run_on_every_rank(two: Workers) -> None:
    (kind, message, _), (other, said, _) = two.run(fails)
    assert (kind, other) == ("ValueError", "PeerError")
    assert "LGreCo(alpha=0.0001): no choice of candidates loses so little" in message
    assert "rank 0 found no setting" in said


def waits(rank: int, world: int) -> Any:
    slow = lgreco.LGreCo.decide

    def decide(self: Any, t: Any) -> Any:
        time.sleep(1.0)
        return slow(self, t)

    lgreco.LGreCo.decide = decide  # type: ignore[method-assign]
    try:
        module = Given()
        model, attachment = hooked(module, "LGreCo(ErrorFeedback(TopK(ratio=0.02)), every=20, window=4)")
        seconds = []
        for step in range(32):
            since = time.perf_counter()
            model(gradients(rank, step)).backward()
            time.sleep(0.25 if 25 <= step < 30 else 0.0)  # five steps of a quarter of a second: a second goes by
            seconds.append(time.perf_counter() - since - (0.25 if 25 <= step < 30 else 0.0))
        return max(seconds[10:]), attachment.choices()
    finally:
        lgreco.LGreCo.decide = slow  # type: ignore[method-assign]


def test_no_step_waits_for_a_decision(two: Workers) -> None:
    for longest, choices in two.run(waits):
        assert longest < 0.5
        assert set(choices.values()) != {0.02}


def one_bit(rank: int, world: int, compressor: str) -> Any:
    module = Given()
    model = DDP(module, bucket_cap_mb=0.004)
    optimizer = OneBitAdam(model, lr=0.01, freeze=4, compressor=cc.parse(compressor), timeout=20)
    for step in range(STEPS):
        optimizer.zero_grad()
        model(gradients(rank, step)).backward()
        optimizer.step()
    return models.flat(module)


@pytest.mark.parametrize(
    "compressor", ["LGreCo(TopK(ratio=0.02), every=6)", "LGreCo(ErrorFeedback(QSGD(bits=4)), every=6, alpha=2.0)"]
)
def test_one_bit_optimizers_take_a_controller(two: Workers, compressor: str) -> None:
    ends = two.run(one_bit, compressor=compressor)
    assert torch.equal(ends[0], ends[1])
    assert ends[0].isfinite().all()
