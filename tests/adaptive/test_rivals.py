"""Accordion, LEGACY and a global top-k, on the interface of L-GreCo."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import compcomm as cc
from compcomm.adaptive.telemetry import Telemetry, measure
from compcomm.reducer import Context
from compcomm.transports.dry_run import plan
from compcomm.transports.simulate import Simulator

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
            ((control, segments),) = simulator.reducer.controllers(simulator.stores[0].segments())
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
    legacy: Any = cc.Legacy(cc.ErrorFeedback(cc.TopK(ratio=0.02)), large=0.005, threshold=4096, early=4, steps=10)
    a, b, c, _ = LAYOUT.segments
    assert [legacy.at(s, 0) for s in (a, b, c)] == [0.02, 0.08, 0.02]
    assert [legacy.at(s, 10) for s in (a, b, c)] == [0.005, 0.02, 0.005]
    for t, small, large in ((0, 0.08, 0.02), (10, 0.02, 0.005)):
        due = sum(
            sum(p.sent for p in plan(cc.settle(cc.TopK(ratio=r), 2), cc.Layout.of([(s.name, s.shape)]), 2))
            for s, r in ((a, large), (b, small), (c, large))
        )
        sent = sum(p.sent for p in plan(cc.settle(legacy, 2), cc.Layout.of(SHAPES[:3]), 2, 0, t))
        assert abs(sent - due) <= 2 * 24  # two headers fewer


def test_a_global_threshold_selects_what_sorting_the_whole_model_does() -> None:
    generator = torch.Generator().manual_seed(1)
    scale = {"a": 1.0, "b": 0.2, "c": 3.0}
    given = []
    for i, s in enumerate(LAYOUT.segments[:3]):
        given.append((i, s, torch.randn(s.numel, generator=generator) ** 3 * scale[s.name]))
    reducer: Any = cc.GlobalTopK(cc.TopK(ratio=0.02))
    squares = measure(cc.settle(cc.TopK(ratio=0.02), 2), given, 3, reducer.settings, Context())
    numel = np.array([s.numel for _, s, _ in given])
    t = Telemetry(
        names=("a", "b", "c"), numel=numel, settings=reducer.settings, norms=np.sqrt(squares[:, 0]),
        before=np.zeros(3), errors=np.sqrt(squares[:, 1:]), sizes=np.ones((3, len(reducer.settings)), np.int64),
        current=np.zeros(3, np.int64), reference=np.zeros(3, np.int64), first=True,
    )  # fmt: skip
    densities = np.array(reducer.decide(t))
    wanted = 0.02 * numel.sum()
    assert (densities * numel).sum() == pytest.approx(wanted, rel=0.02)
    everything = torch.cat([x.abs() for _, _, x in given]).sort(descending=True).values
    due = float(everything[int(wanted) :].square().sum())
    error = sum(
        float(x.abs().sort(descending=True).values[int(r * s.numel) :].square().sum())
        for r, (_, s, x) in zip(densities, given, strict=True)
    )
    assert error == pytest.approx(due, rel=0.05)
    assert densities[2] > 0.02 > densities[1]


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: cc.Accordion(cc.TopK(ratio=0.1), high=cc.RandK(ratio=0.01)), "another family"),
        (lambda: cc.Accordion(cc.TopK(ratio=0.1), high=2.0), "does not serve"),
        (lambda: cc.Accordion(cc.TopK(ratio=0.1), high=0.01, eta=-1), "eta=-1"),
        (lambda: cc.Accordion(cc.LGreCo(cc.TopK(ratio=0.1)), high=0.01), "two controllers"),
        (lambda: cc.Accordion(cc.Exact(), high=0.01), "has no density"),
        (lambda: cc.Legacy(cc.TopK(ratio=0.1), large=3.0), "does not serve"),
        (lambda: cc.Legacy(cc.TopK(ratio=0.1), large=0.01, threshold=0), "threshold=0"),
        (lambda: cc.Legacy(cc.TopK(ratio=0.1), large=0.01, early=0), "early=0"),
        (lambda: cc.Legacy(cc.QSGD(bits=8), large=4, early=2), "does not serve"),
        (lambda: cc.GlobalTopK(cc.QSGD(bits=4)), "needs magnitudes"),
        (lambda: cc.GlobalTopK(cc.ErrorFeedback(cc.RandK(ratio=0.1))), "needs magnitudes"),
    ],
)
def test_mistakes(make: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        make()
