"""Schedules: settings by step and by epoch, the bytes that follow, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import compcomm as cc
from compcomm.testing.inputs import model_layout
from compcomm.testing.simulated import backwards, gradients, step
from compcomm.transports.dry_run import plan
from compcomm.transports.simulator import Simulator
from tests.refusals import refusals, refused


def test_deep_gradient_compressions_warm_up() -> None:
    schedule = cc.Geometric(cc.TopK(ratio=0.001), start=0.25, steps=4, epoch=100)
    found = [schedule.at(100 * epoch) for epoch in range(6)]
    assert found == pytest.approx([0.25, 0.0629, 0.0158, 0.00398, 0.001, 0.001], rel=1e-2)
    assert schedule.at(99) == schedule.at(0) != schedule.at(100)


def test_dgc_has_the_same_as_its_own() -> None:
    own = cc.DGC(cc.TopK(ratio=0.001), warmup=50, stages=5)
    outside = cc.Geometric(cc.TopK(ratio=0.001), start=0.001 ** (1 / 6), steps=50, stages=5)
    assert [outside.at(t) for t in range(0, 60, 7)] == pytest.approx([own.density(t) for t in range(0, 60, 7)])


def test_linear_and_steps() -> None:
    assert [cc.Linear(cc.QSGD(bits=2), start=8, steps=3).at(t) for t in range(5)] == [8, 6, 4, 2, 2]
    assert [
        cc.Linear(cc.TopK(ratio=0.1), start=0.5, steps=8, stages=2).at(t) for t in (0, 3, 4, 7, 8)
    ] == pytest.approx([0.5, 0.5, 0.3, 0.3, 0.1])
    steps = cc.Steps(cc.PowerSGD(4), {2: 8, 3: 1}, epoch=10)
    assert [steps.at(t) for t in (0, 19, 20, 29, 30, 1 << 30)] == [4, 4, 8, 8, 1, 1]


@pytest.mark.parametrize(
    "reducer",
    [
        cc.Steps(cc.ErrorFeedback(cc.TopK(ratio=0.01)), {0: 0.25, 3: 0.05}),
        cc.ErrorFeedback(cc.Steps(cc.TopK(ratio=0.01), {0: 0.25, 3: 0.05})),
    ],
    ids=repr,
)
def test_a_step_is_that_of_its_setting(reducer: cc.Reducer) -> None:
    """What is sent, and the dry run of every step, are those of the plain reducer at that setting."""
    layout = model_layout()
    for t, ratio in ((0, 0.25), (2, 0.25), (3, 0.05)):
        due = plan(cc.settle(cc.ErrorFeedback(cc.TopK(ratio=ratio)), 2), layout, 2)
        assert plan(cc.settle(reducer, 2), layout, 2, 0, t) == due
    simulator, plain = Simulator(reducer, 2), Simulator(cc.ErrorFeedback(cc.TopK(ratio=0.25)), 2)
    for t in range(3):
        a, b = (step(s, gradients(2, t), backwards(t)) for s in (simulator, plain))
        assert all(torch.equal(a[0][n], b[0][n]) for n in a[0])
    assert simulator.sent == plain.sent


def test_ranks_change_and_exact_parameters_do_not() -> None:
    reducer = cc.settle(cc.Linear(cc.PowerSGD(2), start=14, steps=4), 2)
    plain = cc.settle(cc.PowerSGD(2), 2)
    for s in model_layout().segments:
        assert reducer.exact(s) == plain.exact(s)
        assert set(reducer.slots(s, 2)) == set(plain.slots(s, 2))
    sent = [sum(p.sent for p in plan(reducer, model_layout(), 2, 0, t)) for t in range(6)]
    assert sent == sorted(sent, reverse=True)
    assert sent[0] > 3 * sent[-1]


def test_resumes_at_any_step() -> None:
    """A run cut before, at and after a boundary goes on bit for bit, and knows its stage from the step alone."""
    reducer = cc.Steps(cc.PowerSGD(2, alternate=True), {2: 7, 4: 1})
    whole = Simulator(reducer, 2)
    for t in range(7):
        states = [store.state_dict() for store in whole.stores]
        resumed = Simulator(reducer, 2)
        for store, state in zip(resumed.stores, states, strict=True):
            if t:
                store.declare(model_layout())
                store.load_state_dict(state)
        resumed.steps = t
        a, b = (step(s, gradients(2, t), backwards(t)) for s in (resumed, whole))
        assert all(torch.equal(a[0][n], b[0][n]) for n in a[0])


def test_memory_is_that_of_the_largest_rank() -> None:
    """Named ranks stay, whatever "*" says the memory is that of the schedule, and it does not move with the step."""
    layout = model_layout()
    for ranks in ({}, {"*": 30}, {layout.segments[0].name: 3}):
        reducer: Any = cc.settle(cc.Steps(cc.PowerSGD(2, ranks=ranks), {0: 6, 5: 1}), 2)
        for s in layout.segments:
            found = [reducer.now_at(t).slots(s, 2) for t in (0, 5)]
            assert found[0] == found[1] == reducer.slots(s, 2)


def test_the_coarsest_setting_decides_the_form() -> None:
    """Feedback is around contractions only, in every stage, and EControl's eta fits all of them."""
    for make in (lambda c: cc.ErrorFeedback(cc.Steps(c, {3: 1})), lambda c: cc.Steps(cc.ErrorFeedback(c), {3: 1})):
        for world in (2, 3):
            assert "Contractive(MinMax(5))" in repr(cc.settle(make(cc.MinMax(5)), world))
    assert "Contractive" not in repr(cc.settle(cc.ErrorFeedback(cc.Steps(cc.MinMax(5), {3: 8})), 3))
    inside: Any = cc.settle(cc.EControl(cc.Steps(cc.TopK(ratio=0.1), {3: 0.001})), 3)
    outside: Any = cc.settle(cc.Steps(cc.EControl(cc.TopK(ratio=0.1)), {3: 0.001}), 3)
    assert inside.eta == outside.reducer.eta == 0.001
    given: Any = cc.settle(cc.Steps(cc.EControl(cc.TopK(ratio=0.1), eta=0.3), {3: 0.001}), 3)
    assert given.reducer.eta == 0.3


def test_within_a_stage_nothing_is_made_anew() -> None:
    reducer: Any = cc.settle(cc.Geometric(cc.ErrorFeedback(cc.TopK(ratio=0.01)), start=0.25, steps=4, epoch=10), 2)
    assert reducer.now_at(10) is reducer.now_at(19) is not reducer.now_at(20)
    assert reducer.now_at(1 << 30) is reducer.now_at(40)


@refusals("""
Linear(SignScale(), start=8, steps=3) => has no density, bits or rank
Linear(QSGD(bits=4), start=9, steps=3) => 9, which comes in the schedule, does not serve
Geometric(TopK(ratio=0.1), start=1.5, steps=3) => does not serve
Geometric(TopK(ratio=0.1), start=0, steps=3) => no density
Geometric(TopK(ratio=0.1), start=0.5, steps=0) => steps=0
Geometric(TopK(ratio=0.1), start=0.5, steps=3, epoch=0) => epoch=0
Geometric(TopK(ratio=0.1), start=0.5, steps=3, stages=4) => a stage is a step or more
Steps(TopK(ratio=0.1), {}) => give {step: setting}
Steps(TopK(ratio=0.1), {5: 0.1, 2: 0.2}) => ascending
Steps(TopK(ratio=0.1), {-1: 0.1}) => ascending
Steps(TopK(ratio=0.1), {0: 7}) => does not serve
Steps(TopK(ratio=0.1), None) => give {step: setting}
Steps(TopK(ratio=0.1), 5) => give {step: setting}
Steps(TopK(ratio=0.1), [1, 2]) => give {step: setting}
Steps(TopK(ratio=0.1), ['ab']) => give {step: setting}
Steps(QSGD(bits=4), {0: 0.25}) => 0.25, which comes in the schedule, does not serve
Steps(PowerSGD(2), {0: 2.5}) => 2.5, which comes in the schedule, does not serve
Linear(QSGD(bits=4), start=0.25, steps=3) => 0, which comes in the schedule, does not serve
DGC(Steps(TopK(ratio=0.1), {0: 0.5}), warmup=4) => chooses too
DGC(Steps(QSGD(bits=4), {0: 8})) => Use masking=False
Steps(Warmup(2, TopK(ratio=0.1)), {0: 0.5}) => Warmup goes outside
Steps(TopK(ratio=0.1), {0: '0.1'}) => no density
Steps(DGC(TopK(ratio=0.01), warmup=4), {0: 0.1}) => two schedules
Steps(Linear(TopK(ratio=0.1), start=0.5, steps=3), {0: 0.1}) => chooses too
LGreCo(Linear(TopK(ratio=0.1), start=0.5, steps=3)) => chooses too
ErrorFeedback(Steps(MinMax(bits=5, rounding='nearest'), {0: 2})) => no contraction
""")
def test_mistakes(call: Any, words: list[str]) -> None:
    refused(call, *words)


def test_descriptions_read_back() -> None:
    for text in (
        "Steps(ErrorFeedback(TopK(ratio=0.01)), boundaries=((0, 0.25), (10, 0.05)), epoch=500)",
        "Geometric(TopK(ratio=0.001), start=0.25, steps=4)",
        "EControl(Linear(QSGD(bits=2, rounding='nearest'), start=8, steps=100, stages=3))",
    ):
        assert repr(cc.parse(text)) == text
    assert cc.parse("Steps(TopK(0.01), {0: 0.25, 10: 0.05})") == cc.Steps(cc.TopK(0.01), {0: 0.25, 10: 0.05})
