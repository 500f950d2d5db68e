"""Whatever is composed, cut, spoilt or left out: ranks agree, bad steps are seen, and feedback loses nothing."""

from __future__ import annotations

from math import inf

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import compcomm as cc
from compcomm.testing.conservation import keeps_everything, remembered
from compcomm.testing.simulated import slot

SHAPES = st.fixed_dictionaries(
    {
        "a": st.sampled_from([(17, 5), (1, 40), (5, 1, 7)]),
        "b": st.sampled_from([(9,), (600,), (1,)]),
        "c": st.sampled_from([(4, 4, 4), (40, 39)]),
        "d": st.just(()),
        "e": st.just((0, 3)),
        "f": st.sampled_from([(64, 3), (2, 1, 31)]),
        "g": st.sampled_from([(33, 1), (16, 16)]),
    }
)
small = st.sampled_from([0, 70])
blocks = st.sampled_from([16, 32, 512])
contractions = st.one_of(
    st.builds(cc.TopK, ratio=st.sampled_from([0.03, 0.3, 1.0]), dense_below=small),
    st.builds(cc.RandK, ratio=st.sampled_from([0.1, 0.5]), dense_below=small),
    st.builds(cc.RandK, ratio=st.just(0.4), unbiased=st.just(True), dense_below=small),
    st.builds(cc.QSGD, bits=st.integers(2, 8), rounding=st.sampled_from(["nearest", "stochastic"]), block=blocks,
              norm=st.just(inf), dense_below=small),
    st.builds(cc.SignScale, block=blocks, dense_below=small),
    st.just(cc.Cast(torch.bfloat16, 0)),
)  # fmt: skip


def _routes(c: cc.Compressor) -> list[object]:
    routes: list[object] = [c, cc.AllGather(c), cc.TwoPhase(c)]
    if isinstance(c, cc.TopK):
        routes.append(cc.SparseAllReduce(c))
    return [*routes, cc.AllReduce(c)] if c.linear and c.dtype == torch.float32 else routes


powers = st.builds(cc.PowerSGD, st.integers(1, 6), st.booleans(), st.sampled_from([0.1, 1, 2]), st.booleans(),
                   st.sampled_from(["aggregate", "local"]))  # fmt: skip
routed = contractions.flatmap(lambda c: st.sampled_from(_routes(c)))
estimates = st.builds(cc.EF21, routed, momentum=st.sampled_from([1.0, 0.4]), start=st.booleans())
velocities = st.builds(cc.DGC, routed, momentum=st.sampled_from([0.0, 0.7]), nesterov=st.booleans(),
                       masking=st.just(False), clip=st.sampled_from([None, 2.0]))  # fmt: skip
controls = st.builds(cc.EControl, routed, eta=st.sampled_from([None, 0.2, 1.0]), start=st.booleans())
feedback = st.one_of(routed.map(cc.ErrorFeedback), estimates, controls, velocities, powers)
parts = st.dictionaries(st.sampled_from(["a", "[bc]", "f", "g*"]), feedback, max_size=3)
reducers = st.one_of(
    feedback,
    routed,
    st.builds(cc.Warmup, st.integers(0, 3), feedback),
    st.builds(lambda some, rest: cc.Partition({**some, "*": rest}), parts, st.one_of(feedback, st.just(cc.Exact()))),
)
cuts = st.lists(st.sampled_from("abcdefg"), min_size=7, max_size=7, unique=True).flatmap(
    lambda names: st.integers(1, 6).map(lambda i: ("".join(names[:i]), "".join(names[i:])))
)
events = st.fixed_dictionaries(
    {
        "cut": cuts,
        "dead": st.sets(st.sampled_from("abcfg"), max_size=2),
        "bad": st.one_of(st.none(), st.none(), st.tuples(st.sampled_from("abcfg"), st.integers(0, 4))),
        "zero": st.sampled_from("abcfg"),
    }
)


def _estimates_together(simulator: cc.Simulator, s: cc.Segment) -> None:
    """Slot "mean" is equal on all ranks, and the mean of their estimates less what the owners keep."""
    settled, ranks = simulator.reducer, range(simulator.world)
    if s.numel and "mean" in settled.slots(s, simulator.world):
        means = [slot(simulator, r, "mean")[s.name] for r in ranks]
        assert all(torch.equal(m, means[0]) for m in means), s.name
        if "estimate" in settled.slots(s, simulator.world):
            due = torch.stack([slot(simulator, r, "estimate")[s.name] for r in ranks]).double().mean(0)
            shares = [slot(simulator, r, "server").get(s.name) for r in ranks]
            held = [share for share in shares if share is not None]
            if held:
                due -= settled.slots(s, len(held))["server"].natural(torch.cat(held)).double()
            assert float((means[0] - due).abs().max()) < 3e-5, s.name


@pytest.mark.slow
@given(
    reducer=reducers, world=st.integers(1, 5), shapes=SHAPES, plan=st.lists(events, min_size=2, max_size=7),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_any_composition(reducer: cc.Reducer, world: int, shapes: dict, plan: list[dict], seed: int) -> None:
    simulator = cc.Simulator(reducer, world, seed=seed)
    settled = simulator.reducer
    whole = cc.Layout.of(shapes.items())
    exact = {s.name for s in whole.segments if settled.exact(s)}
    g = torch.Generator().manual_seed(seed)
    applied = {n: torch.zeros(s, dtype=torch.float64) for n, s in shapes.items()}
    due = {n: torch.zeros(s, dtype=torch.float64) for n, s in shapes.items()}
    for t, event in enumerate(plan):
        given = [{n: torch.randn(s, generator=g) for n, s in shapes.items()} for _ in range(world)]
        given[t % world][event["zero"]].zero_()
        for n in event["dead"]:
            for gradient in given:
                gradient[n].zero_()
        if event["bad"]:
            given[event["bad"][1] % world][event["bad"][0]].view(-1)[-1] = inf
        layouts = [cc.Layout.of((n, shapes[n]) for n in part) for part in event["cut"]]
        flats = [[torch.cat([x[s.name].reshape(-1) for s in ly.segments]) for ly in layouts] for x in given]
        buckets = [[cc.Bucket(f, ly) for f, ly in zip(fs, layouts, strict=True)] for fs in flats]
        means = [{n: v for b in rank for n, v in b.views().items()} for rank in simulator.step(buckets)]
        assert simulator.bad == bool(event["bad"])
        for n in shapes:
            assert all(torch.equal(m[n].nan_to_num(), means[0][n].nan_to_num()) for m in means), n
            if not simulator.bad:
                applied[n] += means[0][n]
            # a dense step forgets what was bad, as Exact does
            warm = isinstance(settled, cc.Warmup) and t < settled.steps
            if not (simulator.bad and (n in exact or warm)):
                due[n] += torch.stack([x[n].nan_to_num(0.0, 0.0, 0.0) for x in given]).double().mean(0)
        for s in whole.segments:
            _estimates_together(simulator, s)
        if event["bad"]:
            assert means[0][event["bad"][0]].isnan().any() or means[0][event["bad"][0]].isinf().any()
    for s in whole.segments:
        n, shape = s.name, s.shape
        if s.numel and keeps_everything(settled, world, s):
            held = remembered(simulator, n, shape)
            off = float((applied[n] + held - due[n]).abs().max())
            assert off == pytest.approx(0.0, abs=3e-5), n


@pytest.mark.parametrize("route", [cc.AllGather, cc.TwoPhase, cc.SparseAllReduce], ids=lambda r: r.__name__)
@pytest.mark.parametrize("scheme", [cc.ErrorFeedback, cc.EF21, cc.EControl, cc.DGC], ids=lambda s: s.__name__)
def test_a_parameter_without_elements(scheme: type[cc.Reducer], route: type[cc.Reducer]) -> None:
    """It has no memory; beside it all goes on, and in a bucket by itself too."""
    alone = cc.Simulator(scheme(route(cc.TopK(ratio=1.0, dense_below=0))), 2)
    assert all(m["e"].shape == (0, 3) for m in alone.mean([{"e": torch.zeros(0, 3)}] * 2))
    simulator = cc.Simulator(scheme(route(cc.TopK(ratio=1.0))), 2)
    g = torch.Generator().manual_seed(0)
    for _ in range(3):
        given = [{"e": torch.zeros(0, 3), "w": torch.randn(50, 40, generator=g)} for _ in range(2)]
        means = simulator.mean(given)
        assert means[0]["e"].shape == (0, 3)
        assert means[0]["w"].any() and torch.equal(means[0]["w"], means[1]["w"])
