"""L-GreCo at work: fewer bytes, no more error, in every family and at every place of the composition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import compcomm as cc
from compcomm.adaptive.controller import Controller
from compcomm.adaptive.telemetry import Telemetry
from compcomm.core import structure
from compcomm.core.layout import Layout
from compcomm.core.state import State
from compcomm.transports.simulator import Simulator
from tests.refusals import refusals, refused

SHAPES = (("embed", (3000, 32)), ("wide", (64, 256)), ("deep", (256, 64)), ("small", (40, 40)), ("bias", (64,)))
LAYOUT = Layout.of(SHAPES)


def unlike(rank: int, step: int) -> dict[str, torch.Tensor]:
    """Gradients of layers that are as unlike as those of a model with an embedding: most rows zero, low rank, dense."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    found = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES}
    rows = torch.randint(0, 3000, (60,), generator=generator)
    embed = torch.zeros(3000, 32)
    embed[rows] = found["embed"][rows]
    found["embed"] = embed
    found["wide"] = 20 * torch.outer(torch.randn(64, generator=generator), torch.randn(256, generator=generator)) / 16
    found["deep"] = found["deep"] ** 3
    found["small"] = found["small"] * 0.01
    return found


def trained(reducer: Any, world: int, steps: int) -> Simulator:
    simulator = Simulator(reducer, world, seed=5)
    for t in range(steps):
        simulator.mean([unlike(rank, t) for rank in range(world)])
    return simulator


def told(simulator: Simulator) -> Telemetry:
    store = simulator.stores[0]
    ((control, segments),) = structure.controllers(simulator.reducer, store.segments())
    return control.telemetry(segments, store)


FAMILIES = [
    cc.LGreCo(cc.ErrorFeedback(cc.TopK(ratio=0.01)), every=8),
    cc.ErrorFeedback(cc.LGreCo(cc.TopK(ratio=0.01), every=8)),
    cc.EF21(cc.LGreCo(cc.TopK(ratio=0.01), every=8)),
    cc.LGreCo(cc.AllReduce(cc.RandK(ratio=0.1)), every=8),
    cc.LGreCo(cc.ErrorFeedback(cc.QSGD(bits=4, rounding="nearest")), every=8),
    cc.ErrorFeedback(cc.LGreCo(cc.MinMax(bits=5), every=8)),
    cc.LGreCo(cc.PowerSGD(4), every=8),
    cc.LGreCo(cc.ErrorFeedback(cc.SparseAllReduce(cc.TopK(ratio=0.01))), every=8),
]


@pytest.mark.parametrize("reducer", FAMILIES, ids=repr)
def test_it_sends_fewer_bytes_at_no_more_error(reducer: cc.Reducer) -> None:
    simulator = trained(reducer, 2, 20)
    t, rows = told(simulator), np.arange(4)
    assert t.errors[rows, t.current].sum() <= t.errors[rows, t.reference].sum() * (1 + 1e-9)
    assert t.sizes[rows, t.current].sum() <= t.sizes[rows, t.reference].sum()
    if "TopK" in repr(reducer) or "PowerSGD" in repr(reducer):
        assert t.sizes[rows, t.current].sum() < 0.8 * t.sizes[rows, t.reference].sum()
    choices = [structure.choices(simulator.reducer, store.segments(), store) for store in simulator.stores]
    assert choices[0] == choices[1]
    assert set(choices[0]) == {"embed", "wide", "deep", "small"}


def test_the_bytes_on_the_wire_are_those_that_it_promised() -> None:
    simulator = trained(cc.LGreCo(cc.ErrorFeedback(cc.TopK(ratio=0.01)), every=8), 2, 20)
    t, rows = told(simulator), np.arange(4)
    before = simulator.sent[0]
    simulator.mean([unlike(rank, 20) for rank in range(2)])
    spared = int((t.sizes[rows, t.reference] - t.sizes[rows, t.current]).sum())
    assert cc.cost(cc.ErrorFeedback(cc.TopK(ratio=0.01)), LAYOUT, 2).sent - (simulator.sent[0] - before) == spared


def synthetic(errors: Any, sizes: Any, reference: int, first: bool = True) -> Telemetry:
    errors, sizes = np.array(errors, float), np.array(sizes)
    m, count = errors.shape
    return Telemetry(
        names=tuple(f"w{i}" for i in range(m)), numel=np.full(m, 1000),
        settings=tuple(0.1 * (j + 1) for j in range(count)),
        norms=errors.max(axis=1) * 2, before=np.zeros(m), errors=errors, sizes=sizes,
        current=np.full(m, reference), reference=np.full(m, reference), first=first,
    )  # fmt: skip


ERRORS, SIZES = [[4.0, 2.0, 1.0], [1.0, 0.5, 0.2]], [[10, 20, 40], [100, 200, 400]]


def lgreco(**options: Any) -> Any:
    return cc.LGreCo(cc.TopK(ratio=0.2), candidates=(0.1, 0.2, 0.30000000000000004), **options)


def test_budgets() -> None:
    t = synthetic(ERRORS, SIZES, 1)
    assert lgreco().decide(t) == pytest.approx([0.3, 0.1])  # 1 + 1 <= 2 + 0.5, and 140 bytes in place of 220
    assert lgreco(alpha=2.0).decide(t) == pytest.approx([0.1, 0.1])
    assert lgreco(budget=0.2).decide(t) == pytest.approx([0.3, 0.1])  # of 8 + 2
    assert lgreco(budget=120).decide(t) == pytest.approx([0.2, 0.1])


def test_a_larger_alpha_never_sends_more() -> None:
    generator = np.random.default_rng(2)
    errors = np.sort(generator.random((6, 5)), axis=1)[:, ::-1]
    sizes = np.sort(generator.integers(10, 1000, (6, 5)), axis=1)
    t = synthetic(errors, sizes, 2)
    spent = []
    for alpha in (1.0, 1.2, 1.5, 2.0, 4.0):
        reducer = cc.LGreCo(cc.TopK(ratio=0.3), candidates=t.settings, alpha=alpha)
        chosen = [t.settings.index(value) for value in reducer.decide(t)]
        spent.append(int(sizes[np.arange(6), chosen].sum()))
    assert spent == sorted(spent, reverse=True)


def test_a_budget_that_cannot_be_met_names_the_smallest() -> None:
    t = synthetic(ERRORS, SIZES, 1)
    with pytest.raises(ValueError, match=r"alpha=0.1\).*smallest that can be met is alpha=0.48"):
        lgreco(alpha=0.1).decide(t)
    with pytest.raises(ValueError, match=r"budget=0.01\).*smallest that can be met is budget=0.12"):
        lgreco(budget=0.01).decide(t)
    later = synthetic(ERRORS, SIZES, 1, first=False)  # in the middle of a run: as little error as there is
    with pytest.warns(RuntimeWarning, match=r"alpha=0.1\).*goes on with those that lose least"):
        assert lgreco(alpha=0.1).decide(later) == pytest.approx([0.3, 0.3])
    with pytest.raises(ValueError, match="take 816 bytes at least"):
        cc.LGreCo(cc.TopK(ratio=0.01), candidates=(0.001, 0.01), budget=100).check(LAYOUT)


def test_candidates_among_which_nothing_can_be_gained() -> None:
    with pytest.raises(ValueError, match=r"none sends less than 0.01, .* Give some below it too"):
        cc.LGreCo(cc.TopK(ratio=0.01), candidates=(0.1, 0.2))
    with pytest.raises(ValueError, match=r"none loses less than 4, .* Give some above it too, or alpha above 1"):
        cc.LGreCo(cc.QSGD(bits=4), candidates=(2, 3))
    for alone in (4, (4,), [4, 4]):
        with pytest.raises(ValueError, match=r"nothing to choose from beside 4. Give two or more"):
            cc.LGreCo(cc.PowerSGD(4), candidates=alone)
    cc.LGreCo(cc.QSGD(bits=4), candidates=(2, 3), alpha=2.0)
    cc.LGreCo(cc.TopK(ratio=0.01), candidates=(0.1, 0.2), budget=0.5)


def test_a_gradient_of_zeros_changes_nothing() -> None:
    t = synthetic(np.zeros((2, 3)), SIZES, 1)
    assert lgreco().decide(t) is None


def test_equal_controllers_of_two_parts() -> None:
    one = cc.LGreCo(cc.ErrorFeedback(cc.TopK(ratio=0.01)), every=12)
    both = trained(cc.Partition({"embed": one, "*": one}), 2, 24)
    apart = trained(cc.Partition({"embed": one, "*": cc.LGreCo(one.reducer, every=12, alpha=1.0 + 1e-9)}), 2, 24)
    assert choices_of(both) == choices_of(apart)
    assert set(choices_of(both)) == {"embed", "wide", "deep", "small"}


def choices_of(simulator: Simulator) -> dict[str, float]:
    store = simulator.stores[0]
    return structure.choices(simulator.reducer, store.segments(), store)


def test_nothing_to_control() -> None:
    simulator = cc.Simulator(cc.LGreCo(cc.TopK(ratio=0.01), every=1), 2)
    for _ in range(3):
        simulator.mean([{"w": torch.ones(4, 4)}] * 2)
    ((control, segments),) = structure.controllers(simulator.reducer, simulator.stores[0].segments())
    assert control.telemetry(segments, simulator.stores[0]).names == ()


@refusals("""
LGreCo(TopK(ratio=0.01), candidates=()) => nothing to choose from
LGreCo(TopK(ratio=0.01), candidates=(QSGD(bits=4), TopK(ratio=0.1))) => another family
LGreCo(SignScale()) => has no density, bits or rank
LGreCo(TopK(k=10)) => has no density, bits or rank
LGreCo(Exact()) => has no density, bits or rank
LGreCo(Partition({'*': TopK(ratio=0.1)})) => has no density, bits or rank
LGreCo(ErrorFeedback(Threshold(ratio=0.1))) => learns from the parameters
LGreCo(SharedScale(QSGD(bits=4))) => needs one setting for all
LGreCo(LGreCo(TopK(ratio=0.01))) => two controllers
LGreCo(Warmup(3, TopK(ratio=0.01))) => chooses too
LGreCo(TopK(ratio=0.01), every=0) => every=0
LGreCo(TopK(ratio=0.01), every=5, window=6) => at most a period
LGreCo(TopK(ratio=0.01), alpha=0) => alpha=0
LGreCo(TopK(ratio=0.01), budget='small') => budget='small'
LGreCo(TopK(ratio=0.01), budget=1.5) => budget=1.5
LGreCo(TopK(ratio=0.01), budget=True) => budget=True
LGreCo(TopK(ratio=0.01), budget=0.5, alpha=2.0) => alpha multiplies
ErrorFeedback(LGreCo(MinMax(bits=5, rounding='nearest'), candidates=(2, 5))) => no contraction
""")
def test_mistakes(call: Any, words: list[str]) -> None:
    refused(call, *words)


def test_what_some_settings_need_all_get() -> None:
    assert repr(cc.ErrorFeedback(cc.LGreCo(cc.QSGD(bits=8)))) == "ErrorFeedback(LGreCo(Contractive(QSGD(bits=8))))"
    assert repr(cc.LGreCo(cc.ErrorFeedback(cc.QSGD(bits=8)))) == "LGreCo(ErrorFeedback(Contractive(QSGD(bits=8))))"
    fitting = cc.ErrorFeedback(cc.LGreCo(cc.MinMax(bits=5, rounding="nearest")))
    assert controller_of(fitting).settings == (5, 6, 7, 8)


def controller_of(part: Any) -> Controller:
    while not isinstance(part, Controller):
        part = part.reducer
    return part


def test_default_candidates() -> None:
    assert controller_of(cc.LGreCo(cc.TopK(ratio=0.16))).settings == (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64)
    assert controller_of(cc.LGreCo(cc.QSGD(bits=4))).settings == (2, 3, 4, 5, 6, 7, 8)
    assert controller_of(cc.LGreCo(cc.PowerSGD(4))).settings == (2, 3, 4, 5, 6, 7, 8)
    many = controller_of(cc.LGreCo(cc.PowerSGD(32))).settings
    assert (many[0], many[-1]) == (16, 64)
    assert len(many) <= 17
    assert 32 in many


def test_a_controller_for_each_part() -> None:
    both = cc.Partition({
        "embed": cc.LGreCo(cc.ErrorFeedback(cc.TopK(ratio=0.01)), every=8),
        "*": cc.LGreCo(cc.PowerSGD(2), every=12),
    })  # fmt: skip
    simulator = trained(both, 2, 26)
    store = simulator.stores[1]
    choices = structure.choices(simulator.reducer, store.segments(), store)
    assert set(choices) == {"embed", "wide", "deep", "small"}
    assert choices["embed"] != 0.01 or choices["wide"] != 2
    assert choices["wide"] == int(choices["wide"])
    now: Any = structure.current(simulator.reducer, State(store, LAYOUT))
    assert dict(now.parts["*"].ranks) == {n: choices[n] for n in ("wide", "deep", "small") if choices[n] != 2}
    assert choices["wide"] != 2, "else this says nothing"


def test_powersgd_follows_a_change_of_rank_without_losing_anything() -> None:
    simulator = Simulator(cc.LGreCo(cc.PowerSGD(3), candidates=(1, 3, 8), every=4, window=2), 2, seed=5)
    total = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES}
    ranks = set()
    for t in range(24):
        given = [unlike(rank, t) for rank in range(2)]
        means = simulator.mean(given)
        assert all(torch.equal(means[0][n], means[1][n]) for n in total)
        ranks.add(
            tuple(structure.choices(simulator.reducer, simulator.stores[0].segments(), simulator.stores[0]).values())
        )
        for name in total:
            total[name] += (given[0][name] + given[1][name]).double() / 2 - means[0][name]
    assert len(ranks) > 1
    for name in ("embed", "wide", "deep", "small"):
        held = sum(store.state_dict()["residual"][name].double() for store in simulator.stores) / 2
        assert torch.allclose(total[name].reshape(-1), held, atol=1e-3)


def test_double_precision_is_refused_with_the_cure() -> None:
    simulator = Simulator(cc.LGreCo(cc.TopK(ratio=0.05), every=1), 1)
    with pytest.raises(TypeError, match="gathers float32"):
        simulator.mean([{"w": torch.zeros(64, 64, dtype=torch.float64)}])
