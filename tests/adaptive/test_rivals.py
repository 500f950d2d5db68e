"""Accordion, LEGACY and a global top-k, on the interface of L-GreCo."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import compcomm as cc
from compcomm.adaptive.measuring import measure
from compcomm.adaptive.telemetry import Telemetry
from compcomm.core import structure
from compcomm.core.context import Context
from compcomm.transports.dry_run import plan
from compcomm.transports.simulator import Simulator
from tests.refusals import refusals, refused

SHAPES = (("a", (64, 64)), ("b", (40, 50)), ("c", (200, 64)), ("bias", (64,)))
LAYOUT = cc.Layout.of(SHAPES)


def norms(before: list[float], now: list[float]) -> Telemetry:
    m, settings = len(now), (0.01, 0.1)
    return Telemetry(
        names=tuple(f"w{i}" for i in range(m)), numel=np.full(m, 100), settings=settings, norms=np.array(now),
        before=np.array(before), errors=np.full((m, 2), np.nan), sizes=np.ones((m, 2), np.int64),
        current=np.zeros(m, np.int64), reference=np.zeros(m, np.int64), first=False,
    )  # fmt: skip


def test_accordions_rule() -> None:
    accordion: Any = cc.Accordion(cc.TopK(ratio=0.1), high=cc.TopK(ratio=0.01))
    before = [0.0, 1.0, 1.0, 1.0, 1.0, 2.0, 1.0]
    now = [1.0, 1.0, 1.49, 1.5, 0.51, 1.0, 0.0]
    assert accordion.decide(norms(before, now)) == [0.1, 0.01, 0.01, 0.1, 0.01, 0.1, 0.1]


def phased(rank: int, step: int) -> dict[str, torch.Tensor]:
    """Layer a is calm from the beginning, b grows in the third interval of four steps, c in the fourth."""
    generator = torch.Generator().manual_seed(100 * rank)
    grown = {"a": 1.0, "b": 9.0 if 8 <= step < 12 else 1.0, "c": 9.0 if step >= 12 else 1.0, "bias": 1.0}
    return {n: torch.randn(shape, generator=generator) * grown[n] for n, shape in SHAPES}


@pytest.mark.parametrize("outer", [False, True])
def test_regimes_in_the_simulator(outer: bool) -> None:
    accordion = cc.Accordion(cc.ErrorFeedback(cc.TopK(ratio=0.1)), high=0.01, every=4)
    simulator = Simulator(cc.LGreCo(accordion, every=4, window=4, candidates=(0.01, 0.1)) if outer else accordion, 2)
    found = []
    for t in range(17):
        simulator.mean([phased(rank, t) for rank in range(2)])
        if t % 4 == 0 and t:
            ((control, segments),) = structure.controllers(simulator.reducer, simulator.stores[0].segments())
            inner = control.reducer if outer else control
            assert [inner.choices(segments, store) for store in simulator.stores] == [
                inner.choices(segments, simulator.stores[0])
            ] * 2
            found.append(inner.choices(segments, simulator.stores[0]))
            if outer:
                t_ = control.telemetry(segments, simulator.stores[0])
                assert [t_.settings[i] for i in t_.reference] == [found[-1][n] for n in t_.names]
                rows = np.arange(3)
                assert t_.sizes[rows, t_.current].sum() <= t_.sizes[rows, t_.reference].sum()
    low = {"a": 0.1, "b": 0.1, "c": 0.1}
    calm = {"a": 0.01, "b": 0.01, "c": 0.01}
    assert found == [low, calm, {**calm, "b": 0.1}, {"a": 0.01, "b": 0.1, "c": 0.1}]


def test_legacy_by_size_and_phase() -> None:
    rule: Any = cc.SizeRule(cc.ErrorFeedback(cc.TopK(ratio=0.02)), large=0.005, threshold=4096, early=4, steps=10)
    a, b, c, _ = LAYOUT.segments
    assert [rule.at(s, 0) for s in (a, b, c)] == [0.02, 0.08, 0.02]
    assert [rule.at(s, 10) for s in (a, b, c)] == [0.005, 0.02, 0.005]
    for t, small, large in ((0, 0.08, 0.02), (10, 0.02, 0.005)):
        due = sum(
            sum(p.sent for p in plan(cc.settle(cc.TopK(ratio=r), 2), cc.Layout.of([(s.name, s.shape)]), 2))
            for s, r in ((a, large), (b, small), (c, large))
        )
        sent = sum(p.sent for p in plan(cc.settle(rule, 2), cc.Layout.of(SHAPES[:3]), 2, 0, t))
        assert abs(sent - due) <= 2 * 24  # two headers fewer


def test_legacy_multiplies_in_the_early_phase_by_what_the_method_has() -> None:
    a, b, *_ = LAYOUT.segments
    bits: Any = cc.SizeRule(cc.QSGD(bits=4), large=2, threshold=4096, early=1.5, steps=1)
    assert [(bits.at(a, t), bits.at(b, t)) for t in (0, 1)] == [(3, 6), (2, 4)]
    ranks: Any = cc.SizeRule(cc.PowerSGD(4), large=cc.PowerSGD(2), threshold=4096, early=2, steps=1)
    assert [(ranks.at(a, t), ranks.at(b, t)) for t in (0, 1)] == [(4, 8), (2, 4)]
    dense: Any = cc.SizeRule(cc.TopK(ratio=0.4), large=0.1, threshold=4096, early=4, steps=1)
    assert [(dense.at(a, t), dense.at(b, t)) for t in (0, 1)] == [(0.4, 1.0), (0.1, 0.4)]


def drawn(kind: str) -> dict[str, torch.Tensor]:
    """Layers whose magnitudes are as unlike as those of a model are."""
    generator = torch.Generator().manual_seed(1)
    found = {n: torch.randn(size, generator=generator) for n, size in (("a", 4096), ("b", 2000), ("c", 100_000))}
    if kind == "heavy tails":
        scales = {"a": 1.0, "b": 3.0, "c": 0.2}
        return {n: x**3 * scales[n] for n, x in found.items()}
    if kind == "mostly zeros":
        found["c"][10_000:] = 0.0
        return {**found, "a": found["a"] * 0.3}
    if kind == "a layer of zeros":
        return {**found, "b": torch.zeros(2000)}
    return {**found, "b": torch.full((2000,), 0.5)}  # all equal


def told(reducer: Any, given: dict[str, torch.Tensor]) -> Telemetry:
    pieces = [(i, cc.Layout.of([(n, (1, len(x)))]).segments[0], x) for i, (n, x) in enumerate(given.items())]
    settings, m = reducer.settings, len(given)
    squares, _ = measure(cc.settle(reducer.reducer, 2), pieces, m, settings, Context())
    return Telemetry(
        names=tuple(given), numel=np.array([len(x) for x in given.values()]), settings=settings,
        norms=np.sqrt(squares[:, 0]), before=np.zeros(m), errors=np.sqrt(squares[:, 1:]),
        sizes=np.ones((m, len(settings)), np.int64), current=np.zeros(m, np.int64), reference=np.zeros(m, np.int64),
        first=True,
    )  # fmt: skip


@pytest.mark.parametrize("ratio", [0.001, 0.01, 0.05, 0.1])
@pytest.mark.parametrize("kind", ["heavy tails", "mostly zeros", "a layer of zeros", "a layer all equal"])
def test_a_global_threshold_selects_what_sorting_the_whole_model_does(kind: str, ratio: float) -> None:
    given = drawn(kind)
    reducer: Any = cc.GlobalTopK(cc.TopK(ratio=ratio))
    densities = reducer.decide(told(reducer, given))
    kept = [cc.TopK(ratio=r).kept(len(x)) for r, x in zip(densities, given.values(), strict=True)]
    everything = torch.cat([x.abs() for x in given.values()]).sort(descending=True).values.double()
    k = int(np.ceil(ratio * len(everything)))
    assert sum(kept) == pytest.approx(k, rel=0.01)
    assert min(kept) >= 1
    found = sum(
        float(x.abs().double().sort(descending=True).values[n:].square().sum())
        for n, x in zip(kept, given.values(), strict=True)
    )
    assert found == pytest.approx(float(everything[k:].square().sum()), rel=0.05)


@pytest.mark.parametrize("ratio", [0.25, 0.6, 1.0])
def test_a_global_threshold_at_high_densities(ratio: float) -> None:
    given = drawn("heavy tails")
    reducer: Any = cc.GlobalTopK(cc.TopK(ratio=ratio))
    densities = np.array(reducer.decide(told(reducer, given)))
    numel = np.array([len(x) for x in given.values()])
    assert (densities * numel).sum() == pytest.approx(ratio * numel.sum(), rel=0.01)


def test_a_global_threshold_in_the_simulator() -> None:
    simulator = Simulator(cc.GlobalTopK(cc.ErrorFeedback(cc.TopK(ratio=0.02)), every=4), 3)
    for t in range(5):
        simulator.mean([phased(rank, t + 8) for rank in range(3)])
    choices = [structure.choices(simulator.reducer, store.segments(), store) for store in simulator.stores]
    assert choices[0] == choices[1] == choices[2]
    assert choices[0]["b"] > 0.02 > choices[0]["a"]
    kept = sum(cc.TopK(ratio=choices[0][s.name]).kept(s.numel) for s in LAYOUT.segments[:3])
    assert kept == pytest.approx(0.02 * sum(s.numel for s in LAYOUT.segments[:3]), rel=0.01)


def test_where_nothing_is_known_settings_stay() -> None:
    reducer: Any = cc.GlobalTopK(cc.TopK(ratio=0.02))
    t = told(reducer, drawn("heavy tails"))
    base = reducer.settings.index(0.02)
    for norms_ in (np.zeros(3), np.array([1.0, np.inf, 1.0])):
        assert reducer.decide(replace(t, norms=norms_, current=np.full(3, base))) is None


def test_uniform_to_lgreco_is_what_accordion_says_whatever_the_candidates() -> None:
    accordion = cc.Accordion(cc.ErrorFeedback(cc.TopK(ratio=0.1)), high=0.01, every=4)
    simulator = Simulator(cc.LGreCo(accordion, every=4), 2)
    for t in range(9):
        simulator.mean([phased(rank, t) for rank in range(2)])
    ((control, segments),) = structure.controllers(simulator.reducer, simulator.stores[0].segments())
    t = control.telemetry(segments, simulator.stores[0])
    assert [t.settings[i] for i in t.reference] == [0.01] * 3
    rows = np.arange(3)
    assert t.errors[rows, t.current].sum() <= t.errors[rows, t.reference].sum() * (1 + 1e-9)
    assert t.sizes[rows, t.current].sum() <= t.sizes[rows, t.reference].sum()


def test_an_overflow_is_no_rise() -> None:
    """What is not finite is not gathered, so that the regime of one interval is that of its good steps."""
    simulator = Simulator(cc.Accordion(cc.ErrorFeedback(cc.TopK(ratio=0.1)), high=0.01, every=8), 2)
    for t in range(17):
        given = [phased(rank, 0) for rank in range(2)]
        if t == 10:
            given[1]["a"][3, 5] = float("inf")
        simulator.mean(given)
    store = simulator.stores[1]
    assert structure.choices(simulator.reducer, store.segments(), store) == {"a": 0.01, "b": 0.01, "c": 0.01}


RIVALS: list[Any] = [
    cc.Accordion(cc.ErrorFeedback(cc.TopK(ratio=0.1)), high=0.01, every=4),
    cc.LGreCo(cc.Accordion(cc.ErrorFeedback(cc.TopK(ratio=0.1)), high=0.01, every=8), every=4, window=2),
    cc.GlobalTopK(cc.ErrorFeedback(cc.TopK(ratio=0.02)), every=6, window=2),
    cc.SizeRule(cc.ErrorFeedback(cc.TopK(ratio=0.1)), large=0.01, threshold=4096, early=2, steps=7),
]


@pytest.mark.slow
@pytest.mark.parametrize("reducer", RIVALS, ids=repr)
def test_a_run_goes_on_in_the_middle_of_a_period(reducer: cc.Reducer) -> None:
    first, others = Simulator(reducer, 2), list[Simulator]()
    for t in range(18):
        if t in (1, 5, 6, 7, 9):
            others.append(Simulator(reducer, 2))
            others[-1].steps = t
            for old, new in zip(first.stores, others[-1].stores, strict=True):
                new.declare(LAYOUT)
                new.load_state_dict(old.state_dict())
        one, *two = (s.mean([phased(rank, t) for rank in range(2)]) for s in (first, *others))
        assert all(torch.equal(a[n], b[n]) for other in two for a, b in zip(one, other, strict=True) for n in a), t
    for other in others:
        for old, new in zip(first.stores, other.stores, strict=True):
            a, b = old.state_dict(), new.state_dict()
            assert all(torch.equal(a[slot][n], b[slot][n]) for slot in a for n in a[slot])


def test_state_is_what_they_say() -> None:
    """Coded elements are held once more; a choice and two norms are 24 bytes a layer, an error 8 for every setting."""
    elements, plain = sum(s.numel for s in LAYOUT.segments[:3]), cc.ErrorFeedback(cc.TopK(ratio=0.1))

    def held(reducer: cc.Reducer) -> int:
        store = Simulator(reducer, 2).stores[0]
        store.declare(LAYOUT)
        return store.nbytes()

    base = held(plain)
    assert held(cc.SizeRule(plain, large=0.01)) == base
    assert held(cc.Accordion(plain, high=0.01)) == base + 4 * elements + 3 * 24
    top: Any = cc.GlobalTopK(plain)
    assert held(top) == base + 4 * elements + 3 * (24 + 8 * len(top.settings))


@pytest.mark.parametrize("part", [cc.TopK(ratio=0.01), cc.QSGD(4)])
def test_more_compression_must_be_more(part: cc.Compressor) -> None:
    """Where it is made; and at attach, where one that was right was given another reducer."""
    right = (
        cc.Accordion(cc.TopK(ratio=0.1), high=0.05) if isinstance(part, cc.TopK) else cc.Accordion(cc.QSGD(5), high=4)
    )
    with pytest.raises(ValueError, match="Exchange the two numbers"):
        cc.Accordion(part, high=0.05 if isinstance(part, cc.TopK) else 4)
    wrong = replace(right, reducer=part)
    for whole in (wrong, cc.LGreCo(wrong), cc.Warmup(steps=1, reducer=wrong)):
        with pytest.raises(ValueError, match="Exchange the two numbers"):
            whole.check(LAYOUT)


def test_a_turned_accordion_is_described_as_it_was_made() -> None:
    for text in ("Accordion(QSGD(bits=5), high=4)", "LGreCo(Accordion(TopK(ratio=0.1), high=0.01))"):
        assert repr(cc.parse(text)) == text and cc.parse(text) == cc.parse(repr(cc.parse(text)))
    fed: Any = cc.settle(cc.ErrorFeedback(cc.LGreCo(cc.Accordion(cc.TopK(ratio=0.1), high=0.05))), 2)
    assert min(fed.reducer.settings) == 0.1 / 16, "settings below high are candidates too"


def test_a_simulator_refuses_what_does_not_fit_the_model() -> None:
    """As attach does: at the first step, with all buckets of a step taken together, and again where more comes."""
    parts = cc.Partition({"a": cc.Exact(), "z*": cc.TopK(ratio=0.1), "*": cc.TopK(ratio=0.1)})
    small = cc.LGreCo(cc.TopK(ratio=0.1), budget=400, every=4)
    given = [phased(rank, 0) for rank in range(2)]
    with pytest.raises(ValueError, match=r"no parameter is left for pattern 'z\*'"):
        Simulator(parts, 2).mean(given)
    layouts = [cc.Layout.of([(n, shape)]) for n, shape in SHAPES]
    buckets = [[cc.Bucket(torch.randn(layout.numel), layout) for layout in layouts] for _ in range(2)]
    Simulator(cc.Partition({"a": cc.Exact(), "*": cc.TopK(ratio=0.1)}), 2).step(buckets)
    simulator = Simulator(small, 2)
    simulator.step([own[:1] for own in buckets])
    with pytest.raises(ValueError, match=r"LGreCo\(budget=400\): no choice is that small"):
        simulator.step([own[1:] for own in buckets])


@refusals("""
Accordion(TopK(ratio=0.1), high=RandK(ratio=0.01)) => Give high as a number, the density
LGreCo(TopK(ratio=0.1), candidates=RandK(ratio=0.01)) => another family | such as candidates=
Accordion(TopK(ratio=0.1), high=2.0) => does not serve
Accordion(TopK(ratio=0.1), high=0.01, eta=-1) => eta=-1
Accordion(LGreCo(TopK(ratio=0.1)), high=0.01) => two controllers
Accordion(Exact(), high=0.01) => has no density
Accordion(TopK(ratio=0.1), high=(0.01, 0.02)) => one setting, such as high=0.01
Accordion(TopK(ratio=0.1), high=()) => one setting
LGreCo(Accordion(TopK(ratio=0.1), high=0.01, every=50)) => LGreCo(Accordion(..., every=50)
LGreCo(Accordion(TopK(ratio=0.1), high=0.01, every=30), every=20) => a period late
LGreCo(GlobalTopK(TopK(ratio=0.1))) => window=200
SizeRule(DGC(TopK(ratio=0.1), warmup=3), large=0.01) => two schedules
GlobalTopK(TopK(k=10)) => has no density
GlobalTopK(Threshold(ratio=0.1)) => needs magnitudes
SizeRule(TopK(ratio=0.1), large=3.0) => does not serve
SizeRule(TopK(ratio=0.1), large=0.01, threshold=0) => threshold=0
SizeRule(TopK(ratio=0.1), large=0.01, early=0) => early=0
SizeRule(QSGD(bits=8), large=4, early=2) => does not serve
GlobalTopK(QSGD(bits=4)) => needs magnitudes
GlobalTopK(ErrorFeedback(RandK(ratio=0.1))) => needs magnitudes
""")
def test_mistakes(call: Any, words: list[str]) -> None:
    refused(call, *words)
