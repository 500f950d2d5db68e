"""Auto between real processes: no compression where nothing pays, the fastest method on a slow link, checkpoints."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import pytest
import torch

import compcomm as cc
from compcomm.hooks.auto import SETTLE
from compcomm.plan import live
from compcomm.plan.link import Link

from . import models
from .harness import Workers

pytestmark = pytest.mark.multi

STEPS = 4
BEFORE = SETTLE + STEPS + 1
METHODS = (cc.ErrorFeedback(cc.TopK(ratio=0.01)), cc.Cast(torch.bfloat16))


def run(rank: int, steps: range, attached: Any, rate: str | None = None) -> Any:
    """Gradients of the steps, and what was said; ``rate``: the link that is measured, in place of the real one."""
    module, model, _ = attached
    real, said = live.measure, io.StringIO()
    if rate is not None:
        live.measure = lambda transport: Link.of(rate, "100us")
    found = []
    try:
        with contextlib.redirect_stderr(said):
            for step in steps:
                module.zero_grad()
                (x,) = models.batches(rank, 1, start=step)
                model(x).pow(2).mean().backward()
                found.append(torch.cat([p.grad.reshape(-1) for p in module.parameters()]))
    finally:
        live.measure = real
    return found, said.getvalue()


def attached(auto: cc.Auto) -> Any:
    module = models.mlp(layers=6)
    return module, *models.wrap(module, auto, seed=3)


def picks(rank: int, world: int, rate: str | None, margin: float) -> Any:
    mine = attached(cc.Auto(methods=METHODS, steps=STEPS, margin=margin))
    found, said = run(rank, range(BEFORE + 6), mine, rate)
    exact, _ = run(rank, range(BEFORE + 6), attached_exact())
    attachment = mine[2]
    off = [float((a - b).abs().max()) for a, b in zip(found, exact, strict=True)]
    return off, said, repr(attachment.reducer), attachment.plain is not None, attachment.step, attachment.report().steps


def attached_exact() -> Any:
    module = models.mlp(layers=6)
    return module, *models.wrap(module, cc.Exact())


def test_no_compression_where_nothing_pays(two: Workers) -> None:
    results = two.run(picks, rate="100gbit", margin=0.5)
    for off, _, reducer, plain, step, steps in results:
        assert max(off) < 1e-6
        assert (reducer, plain, step, steps) == ("Exact()", True, BEFORE + 6, BEFORE + 6)
    assert "Auto picks no compression: a step of" in results[0][1]
    assert "Auto" not in results[1][1]


def test_the_fastest_method_on_a_slow_link(two: Workers) -> None:
    results = two.run(picks, rate="1mbit", margin=0.05)
    for off, _, reducer, plain, step, _ in results:
        assert max(off[:BEFORE]) < 1e-6
        assert max(off[BEFORE:]) > 1e-6
        assert (reducer, plain, step) == ("ErrorFeedback(AllGather(TopK(ratio=0.01)))", False, BEFORE + 6)
    assert "Auto picks ErrorFeedback(TopK(ratio=0.01)): a step of" in results[0][1]
    assert "x as fast" in results[0][1]


def measures(rank: int, world: int) -> Any:
    mine = attached(cc.Auto(steps=STEPS))
    _, said = run(rank, range(BEFORE + 2), mine)
    return said, repr(mine[2].reducer)


def test_the_real_link_and_all_methods(two: Workers) -> None:
    (said, reducer), (_, other) = two.run(measures)
    assert reducer == other
    assert "Auto picks " in said


def resumes(rank: int, world: int, rate: str, portable: bool) -> Any:
    auto = cc.Auto(methods=METHODS, steps=STEPS, margin=0.3)
    mine = attached(auto)
    run(rank, range(BEFORE + 3), mine, rate)
    saved = mine[2].portable_state_dict() if portable else mine[2].state_dict()
    due, _ = run(rank, range(BEFORE + 3, BEFORE + 6), mine)
    again = attached(auto)
    again[2].load_portable_state_dict(saved) if portable else again[2].load_state_dict(saved)
    found, said = run(rank, range(BEFORE + 3, BEFORE + 6), again)
    same = all(torch.equal(a, b) for a, b in zip(due, found, strict=True))
    return same, said, repr(mine[2].reducer) == repr(again[2].reducer), again[2].step


@pytest.mark.parametrize("rate", ["100gbit", "1mbit"])
@pytest.mark.parametrize("portable", [False, True])
def test_a_pick_is_kept_in_checkpoints(two: Workers, rate: str, portable: bool) -> None:
    for same, said, alike, step in two.run(resumes, rate=rate, portable=portable):
        assert (same or (portable and rate == "1mbit"), alike, step, said) == (True, True, BEFORE + 6, "")


def misfits(rank: int, world: int) -> Any:
    dgc = cc.DGC(cc.TopK(ratio=0.01))
    mine = attached(cc.Auto(methods=(dgc, cc.LGreCo(cc.TopK(ratio=0.01), budget=10)), steps=STEPS))
    _, said = run(rank, range(BEFORE + 2), mine, "1mbit")
    return said, mine[2].plain is not None


def test_methods_that_do_not_fit_are_left_out(two: Workers) -> None:
    (said, plain), _ = two.run(misfits)
    assert plain
    assert "none of the methods fits" in said


def loads(rank: int, world: int) -> Any:
    """A run that picked nothing loads what another one picked; a checkpoint that does not fit changes nothing."""
    auto = cc.Auto(methods=METHODS, steps=STEPS, margin=0.3)
    slow, fast = attached(auto), attached(auto)
    run(rank, range(BEFORE + 1), slow, "1mbit")
    run(rank, range(BEFORE + 1), fast, "100gbit")
    saved = slow[2].state_dict()
    (place,) = saved
    wrong = {place: {**saved[place], "seed": 9}}
    told = models.caught(lambda: fast[2].load_state_dict(wrong))
    unchanged = fast[2].plain is not None and repr(fast[2].reducer) == "Exact()"
    fast[2].load_state_dict(saved)
    return told[0], unchanged, fast[2].plain is None, repr(fast[2].reducer) == repr(slow[2].reducer)


def test_loading_what_another_run_picked(two: Workers) -> None:
    for kind, unchanged, taken, alike in two.run(loads):
        assert (kind, unchanged, taken, alike) == ("StateError", True, True, True)


def alone(rank: int, world: int) -> Any:
    model, attachment = models.wrap(models.mlp(layers=2), cc.Auto(steps=2))
    for x in models.batches(0, 8):
        model(x).sum().backward()
    return attachment.step


def test_one_rank_has_nothing_to_pick() -> None:
    workers = Workers(1)
    try:
        assert workers.run(alone) == [8]
    finally:
        workers.stop()


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: cc.Auto(methods=()), "give reducers"),
        (lambda: cc.Auto(methods=("TopK",)), "give reducers"),
        (lambda: cc.Auto(steps=1), "steps=1"),
        (lambda: cc.Auto(margin=1.0), "margin=1.0"),
    ],
)
def test_mistakes(make: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        make()
