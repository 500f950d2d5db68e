"""What is measured, when a decision takes effect, and what it leaves alone."""

from __future__ import annotations

import math
from dataclasses import make_dataclass
from typing import Any, ClassVar

import pytest
import torch

import compcomm as cc
from compcomm.adaptive import measuring
from compcomm.adaptive.controller import Controller
from compcomm.adaptive.telemetry import Telemetry
from compcomm.combine.candidates import numbers
from compcomm.combine.setting import tuned
from compcomm.core import structure
from compcomm.core.context import Context
from compcomm.core.reducer import Reducer
from compcomm.core.state import State
from compcomm.engine.failure import rehearse
from compcomm.testing.inputs import model_layout
from compcomm.testing.simulated import backwards, gradients, step
from compcomm.transports.dry_run import plan
from compcomm.transports.simulator import Simulator

FIELDS = [("reducer", Any), ("candidates", Any), ("every", int), ("window", Any)]
CODED = ("embedding", "head", "layer.weight")


def gathered_model(seed: int = 3) -> list[tuple[int, cc.Segment, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for i, name in enumerate(CODED):
        (segment,) = model_layout((name,)).segments
        tensor = torch.randn(segment.numel, generator=generator) * torch.rand(segment.numel, generator=generator) ** 4
        found.append((i, segment, tensor * 10.0**i))
    return found


def measured(part: Any, settings: tuple[float, ...]) -> tuple[Any, list[tuple[int, cc.Segment, torch.Tensor]]]:
    given = gathered_model()
    return measuring.measure(cc.settle(part, 2), given, len(given), settings, Context(step=5, seed=1))[0], given


def test_the_error_of_top_k_is_the_tail_of_the_sorted_gradient() -> None:
    settings = (0.01, 0.1, 0.5)
    found, given = measured(cc.ErrorFeedback(cc.TopK(ratio=0.1)), settings)
    for i, segment, tensor in given:
        descending = tensor.double().abs().sort(descending=True).values.square()
        assert found[i, 0] == pytest.approx(float(descending.sum()), rel=1e-6)
        for j, ratio in enumerate(settings):
            tail = float(descending[math.ceil(ratio * segment.numel) :].sum())
            assert found[i, 1 + j] == pytest.approx(tail, rel=1e-5)


def test_the_error_of_a_rank_is_the_tail_of_the_singular_values() -> None:
    ranks = (1, 2, 5, 31)
    found, given = measured(cc.PowerSGD(2), ranks)
    for i, segment, tensor in given:
        spectrum = torch.linalg.svdvals(tensor.view(segment.shape).double()).square()
        for j, rank in enumerate(ranks):
            assert found[i, 1 + j] == pytest.approx(float(spectrum[rank:].sum()), rel=1e-4, abs=1e-6 * found[i, 0])


def test_the_tail_of_a_large_matrix_comes_from_power_iterations() -> None:
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.linalg.qr(torch.randn(n, 200, generator=generator))[0] for n in (300, 400))
    spectrum = 1.0 / torch.arange(1, 201) ** 0.7
    (segment,) = cc.Layout.of([("w", (300, 400))]).segments
    given = [(0, segment, (left * spectrum @ right.T).reshape(-1).contiguous())]
    found = measuring.measure(cc.PowerSGD(4), given, 1, (1, 4, 16), Context())[0][0]
    for j, rank in enumerate((1, 4, 16)):
        assert found[1 + j] == pytest.approx(float(spectrum[rank:].square().sum()), rel=0.01)


@pytest.mark.parametrize("part", [cc.QSGD(bits=4), cc.MinMax(bits=5), cc.RandK(ratio=0.1)], ids=repr)
def test_other_errors_are_those_of_coding(part: cc.Compressor) -> None:
    settings = (2, 8) if part.tunable == "bits" else (0.05, 0.5)
    found, given = measured(part, settings)
    assert (found[:, 1] > found[:, 2]).all()
    for i, segment, tensor in given:
        x = cc.Bucket(tensor.clone(), cc.Layout([segment]))
        tuned(part, settings[0]).encode_(x, Context(step=5, seed=1).rng)
        assert found[i, 1] == pytest.approx(float(x.flat.double().square().sum()), rel=1e-5)


def test_every_layer_is_measured_by_one_rank() -> None:
    layers = measuring.layers(model_layout().segments)
    for world in (1, 2, 3, 9):
        shares = [measuring.dealt(layers, rank, world) for rank in range(world)]
        assert sorted(i for share in shares for i in share) == list(range(len(layers)))
        load = [sum(layers[i].numel for i in share) for share in shares]
        assert max(load) <= max(sum(load) / world + max(layer.numel for layer in layers), 0)


class Odd(Controller, abstract=True):
    """Gives every layer another setting at each decision; keeps what it was told."""

    told: ClassVar[list[Telemetry]] = []

    def decide(self, t: Telemetry) -> list[float]:
        self.told.append(t)
        return [t.settings[(len(self.told) + i) % len(t.settings)] for i in range(len(t.names))]


def odd(reducer: Any, **options: Any) -> Odd:
    Odd.told = []
    defaults = {"candidates": None, "every": 8, "window": 2, **options}
    made = make_dataclass("_Odd", FIELDS, bases=(Odd,), frozen=True, repr=False)
    return made(reducer, *defaults.values())


def advance(simulator: Simulator, steps: int) -> None:
    for _ in range(steps):
        step(simulator, gradients(simulator.world, simulator.steps), backwards(simulator.steps))


def chosen(simulator: Simulator) -> list[dict[str, float]]:
    return [structure.choices(simulator.reducer, store.segments(), store) for store in simulator.stores]


@pytest.mark.parametrize("reducer", [cc.ErrorFeedback(cc.TopK(ratio=0.05)), cc.PowerSGD(2)], ids=repr)
def test_a_decision_takes_effect_at_a_step_that_is_known_beforehand(reducer: Reducer) -> None:
    simulator = Simulator(odd(reducer), 3, seed=1)
    advance(simulator, 1)
    base = chosen(simulator)[0]
    assert len(set(base.values())) == 1
    advance(simulator, 8 + 2 * 3 - 2)
    assert chosen(simulator) == [base] * 3
    advance(simulator, 1)
    first = chosen(simulator)
    assert first[0] != base
    assert first == [first[0]] * 3
    assert set(first[0]) == set(CODED)
    advance(simulator, 8)
    second = chosen(simulator)
    assert second[0] != first[0]
    assert second == [second[0]] * 3
    assert len(Odd.told) == 2  # rank 0 alone decides
    assert Odd.told[0].first
    assert not Odd.told[1].first
    assert (Odd.told[1].before == Odd.told[0].norms).all()


def test_what_is_gathered_is_the_sum_of_the_windows_gradients() -> None:
    simulator = Simulator(odd(cc.AllGather(cc.TopK(ratio=0.05)), every=4, window=2), 2, seed=1)
    advance(simulator, 4 + 2)
    due = {n: torch.zeros(()) for n in CODED}
    for t in (2, 3):
        for i, name in enumerate(CODED):
            due[name] = due[name] + gradients(2, t)[i % 2][name]
    norms = {name: float(n) for name, n in zip(Odd.told[0].names, Odd.told[0].norms, strict=True)}
    both = [
        {name: float(sum(gradients(2, t)[rank][name] for t in (2, 3)).norm()) for name in CODED} for rank in range(2)
    ]
    for name in CODED:
        assert any(norms[name] == pytest.approx(rank[name], rel=1e-5) for rank in both)


def test_memory_stays_when_a_layer_gets_another_setting() -> None:
    simulator = Simulator(odd(cc.ErrorFeedback(cc.TopK(ratio=0.05)), every=4, window=4), 2, seed=1)
    advance(simulator, 3)
    saved = [store.state_dict()["residual"] for store in simulator.stores]
    reviewed = Simulator(odd(cc.ErrorFeedback(cc.TopK(ratio=0.05)), every=3, window=3), 2, seed=1)
    advance(reviewed, 3)
    for store, due in zip(reviewed.stores, saved, strict=True):
        for name, tensor in store.state_dict()["residual"].items():
            assert torch.equal(tensor, due[name])


def test_bytes_follow_the_decision_and_so_does_what_a_failed_rank_sends() -> None:
    reducer = odd(cc.ErrorFeedback(cc.TopK(ratio=0.05)), every=4, window=4)
    simulator = Simulator(reducer, 2, seed=1)
    advance(simulator, 4)
    before = simulator.sent[0]
    advance(simulator, 1)
    state = State(simulator.stores[0], model_layout())
    now = structure.current(simulator.reducer, state)
    due = sum(sum(p.sent for p in plan(now, layout, 2)) for layout in backwards(4))
    assert simulator.sent[0] - before == due
    assert due != sum(cc.cost(reducer, layout, 2).sent for layout in backwards(4))
    ctx = Context(rank=0, world=2, step=5)
    outlined = rehearse(simulator.reducer, state, ctx, torch.float32)
    assert [op.signature for op in outlined] == [p[:3] for p in plan(now, model_layout(), 2)]


@pytest.mark.slow
@pytest.mark.parametrize("part", ["ErrorFeedback(TopK(ratio=0.05))", "QSGD(bits=4)", "RandK(ratio=0.05)"])
def test_a_run_goes_on_bit_for_bit_wherever_it_was_interrupted(part: str) -> None:
    def fresh() -> Simulator:
        return Simulator(odd_by_errors(cc.parse(part)), 2, seed=1)

    whole, saved = fresh(), dict[int, Any]()
    for t in range(20):
        if t in (7, 8, 10, 11, 13, 14, 16):
            saved[t] = [store.state_dict() for store in whole.stores]
        advance(whole, 1)
    assert chosen(whole)[0] != chosen(fresh())[0]
    for at, states in saved.items():
        second = fresh()
        second.steps = at
        for state, new in zip(states, second.stores, strict=True):
            for layout in backwards(0):
                new.declare(layout)
            new.load_state_dict(state)
        advance(second, 20 - at)
        assert chosen(second) == chosen(whole), at
        for a, b in zip(whole.stores, second.stores, strict=True):
            one, two = a.state_dict(), b.state_dict()
            assert all(torch.equal(one[slot][name], two[slot][name]) for slot in one for name in one[slot]), at


class ByErrors(Controller, abstract=True):
    """A setting by the digits of an error, so that any difference shows."""

    def decide(self, t: Telemetry) -> list[float]:
        return [t.settings[int(error * 1e4) % len(t.settings)] for error in t.errors[:, 0]]


def odd_by_errors(part: Any) -> Controller:
    made = make_dataclass("_ByErrors", FIELDS, bases=(ByErrors,), frozen=True, repr=False)
    return made(part, None, 8, 2)


class Fails(Odd, abstract=True):
    def decide(self, t: Telemetry) -> list[float]:
        raise ValueError("nothing serves")


def test_an_error_of_a_decision_is_raised() -> None:
    made = make_dataclass("_Fails", FIELDS, bases=(Fails,), frozen=True, repr=False)
    simulator = Simulator(made(cc.TopK(ratio=0.05), None, 8, 2), 2)
    with pytest.raises(ValueError, match="nothing serves"):
        advance(simulator, 20)


def test_candidates_are_numbers_or_descriptions_of_one_family() -> None:
    part = cc.ErrorFeedback(cc.TopK(ratio=0.01))
    assert numbers("C", part, [0.1, 0.001]) == (0.001, 0.1)
    assert numbers("C", part, (cc.TopK(ratio=0.1), cc.TopK(ratio=0.01))) == (0.01, 0.1)
    assert numbers("C", cc.PowerSGD(4), (cc.PowerSGD(1), 8)) == (1, 8)
    for wrong, why in (
        ((), "nothing to choose from"),
        ((cc.TopK(ratio=0.1), cc.RandK(ratio=0.1)), "another family"),
        ((cc.TopK(ratio=0.1, dense_below=0),), "another family"),
        ((cc.QSGD(bits=4),), "another family"),
        ((0.1, 2.0), "does not serve"),
        (("0.1",), "no density"),
        ((True,), "no density"),
    ):
        with pytest.raises(ValueError, match=why):
            numbers("C", part, wrong)
