"""Auto between real processes: no compression where nothing pays, the fastest method on a slow link, checkpoints."""

from __future__ import annotations

import contextlib
import io
import re
import time
from functools import partial
from typing import Any

import pytest
import torch

import compcomm as cc
from compcomm.hosts.auto import SKIPPED_STEPS
from compcomm.plan import in_run, units
from compcomm.plan.kernels import Kernels
from compcomm.plan.link import Link
from compcomm.plan.step import predict

from . import models
from .harness import Crew, Workers

pytestmark = pytest.mark.multi

STEPS = 4
BEFORE = SKIPPED_STEPS + STEPS + 1
METHODS = (cc.ErrorFeedback(cc.TopK(ratio=0.01)), cc.Cast(torch.bfloat16))


def run(rank: int, steps: range, attached: Any, rate: str | None = None, pause: float = 0.0) -> Any:
    """Gradients of the steps, and what was said; ``rate``: of the link, which each message waits for in fact."""
    module, model, attachment = attached
    real, start, said = in_run.measure, attachment.wire.start, io.StringIO()
    if rate is not None:
        in_run.measure = lambda *_: Link.of(rate, "100us")
        attachment.wire.start = partial(late, attachment.wire, start, rate)
    found = []
    try:
        with contextlib.redirect_stderr(said):
            for step in steps:
                module.zero_grad()
                time.sleep(pause)
                (x,) = models.batches(rank, 1, start=step)
                model(x).pow(2).mean().backward()
                found.append(torch.cat([p.grad.reshape(-1) for p in module.parameters()]))
    finally:
        in_run.measure, attachment.wire.start = real, start
    return found, said.getvalue()


def late(transport: Any, start: Any, rate: str, op: Any) -> Any:
    time.sleep(8 * op.sent_bytes(transport.world, transport.rank) / units.bandwidth(rate))
    return start(op)


def attached(auto: cc.Auto) -> Any:
    module = models.mlp(layers=6)
    return module, *models.wrap(module, auto, seed=3)


def picks(rank: int, world: int, rate: str, margin: float, steps: int) -> Any:
    mine = attached(cc.Auto(methods=METHODS, steps=STEPS, margin=margin))
    found, said = run(rank, range(steps), mine, rate)
    exact, _ = run(rank, range(steps), attached_exact())
    off, attachment = [float((a - b).abs().max()) for a, b in zip(found, exact, strict=True)], mine[2]
    return off, said, repr(attachment.reducer), attachment.observers[0].bypass is not None, attachment.report()


def attached_exact() -> Any:
    module = models.mlp(layers=6)
    return module, *models.wrap(module, cc.Exact())


def test_no_compression_where_nothing_pays(two: Workers) -> None:
    results = two.run(picks, rate="100gbit", margin=0.5, steps=BEFORE + 6)
    for off, _, reducer, plain, report in results:
        assert max(off) < 1e-6
        assert (reducer, plain, report.steps) == ("Exact()", True, BEFORE + 6)
    assert "Auto picks no compression: a step of" in results[0][1]
    assert "Auto" not in results[1][1]


def test_the_fastest_method_on_a_slow_link_stays_where_it_saves(two: Workers) -> None:
    results = two.run(picks, rate="4mbit", margin=0.3, steps=2 * BEFORE + 3)  # much to save, on a busy machine as well
    for off, _, reducer, plain, report in results:
        assert max(off[:BEFORE]) < 1e-6
        assert max(off[BEFORE:]) > 1e-6
        assert (reducer, plain) == ("ErrorFeedback(AllGather(TopK(ratio=0.01)))", False)
        assert report.wire_seconds < 0.5, "measuring the link is not training's"
    said = results[0][1]
    assert "Auto picks ErrorFeedback(TopK(ratio=0.01)): a step of" in said and "x as fast" in said
    assert "goes back" not in said and results[1][1] == ""


def under_test(rank: int, world: int, slower: float) -> Any:
    """A slow link; once a method is picked each step takes ``slower`` seconds more."""
    mine = attached(cc.Auto(methods=METHODS, steps=STEPS, margin=0.3))
    run(rank, range(BEFORE), mine, "10mbit")
    picked = repr(mine[2].reducer)
    _, then = run(rank, range(BEFORE, 2 * BEFORE + 3), mine, "10mbit", pause=slower)
    return picked, repr(mine[2].reducer), mine[2].observers[0].bypass is not None, then, mine[2].step


def test_a_pick_that_does_not_save_what_it_should_is_taken_back(two: Workers) -> None:
    results = two.run(under_test, slower=0.25)
    for picked, reducer, plain, _, step in results:
        assert "TopK" in picked
        assert (reducer, plain, step) == ("Exact()", True, 2 * BEFORE + 3)
    assert "Auto goes back to no compression: steps take" in results[0][3], results[0][3]
    assert results[1][3] == ""


def test_gradients_of_two_bytes_have_nothing_to_gain_from_bf16() -> None:
    layouts = (cc.Layout.of([("w", (1000, 1000))]),)
    for dtype, bytes_sent in ((torch.float32, 4_000_000), (torch.bfloat16, 2_000_000)):
        ddp = predict(None, layouts, 2, Link.of("1gbit"), Kernels(), 0.01, dtype=dtype)
        assert ddp.sent == bytes_sent
        settled = cc.settle(cc.Cast(torch.bfloat16), 2)
        cast = predict(settled, layouts, 2, Link.of("1gbit"), Kernels(), 0.01, dtype=dtype)
        assert 0 <= cast.sent - 2_000_000 < 100, "a header"


def measures(rank: int, world: int) -> Any:
    mine = attached(cc.Auto(steps=STEPS))
    _, said = run(rank, range(BEFORE + 2), mine)
    return said, repr(mine[2].reducer)


def test_the_real_link_and_all_methods(two: Workers) -> None:
    (said, reducer), (_, other) = two.run(measures)
    assert reducer == other
    assert "Auto picks " in said


def resumes(rank: int, world: int, rate: str) -> Any:
    """By rank, and merged: whether it goes on alike, what is said, what was picked, and in which step."""
    auto = cc.Auto(methods=METHODS, steps=STEPS, margin=0.3)
    mine = attached(auto)
    run(rank, range(BEFORE + 3), mine, rate)
    exact, merged, told = mine[2].state_dict(), mine[2].portable_state_dict(), []
    due, _ = run(rank, range(BEFORE + 3, BEFORE + 6), mine)
    for portable in (False, True):
        again = attached(auto)
        again[2].load_portable_state_dict(merged) if portable else again[2].load_state_dict(exact)
        found, said = run(rank, range(BEFORE + 3, BEFORE + 6), again)
        same = all(torch.equal(a, b) for a, b in zip(due, found, strict=True))
        alike = repr(mine[2].reducer) == repr(again[2].reducer)
        told.append((same, alike, said, again[2].step, again[2].observers[0].line))
    return told


@pytest.mark.parametrize("rate", ["100gbit", "10mbit"])
def test_a_pick_is_kept_in_checkpoints(two: Workers, rate: str) -> None:
    method = "no compression" if rate == "100gbit" else r"ErrorFeedback\((AllGather\()?TopK\(ratio=0.01\)+"
    for told in two.run(resumes, rate=rate):
        for portable, (same, alike, said, step, line) in enumerate(told):
            assert same or (portable and rate == "10mbit")
            assert (alike, step, said) == (True, BEFORE + 6, "")
            assert re.fullmatch(f"Auto goes on with {method}, which it had picked before", line)


def misfits(rank: int, world: int) -> Any:
    dgc = cc.DGC(cc.TopK(ratio=0.01))
    mine = attached(cc.Auto(methods=(dgc, cc.LGreCo(cc.TopK(ratio=0.01), budget=10)), steps=STEPS))
    _, said = run(rank, range(BEFORE + 2), mine, "10mbit")
    return said, mine[2].observers[0].bypass is not None


def test_methods_that_do_not_fit_are_left_out(two: Workers) -> None:
    (said, plain), _ = two.run(misfits)
    assert plain
    assert "none of the methods fits" in said


def loads(rank: int, world: int) -> Any:
    """A run that picked nothing loads what another one picked; a checkpoint that does not fit changes nothing."""
    auto = cc.Auto(methods=METHODS, steps=STEPS, margin=0.3)
    slow, fast = attached(auto), attached(auto)
    run(rank, range(BEFORE + 1), slow, "10mbit")
    run(rank, range(BEFORE + 1), fast, "100gbit")
    saved = slow[2].state_dict()
    (place,) = saved
    wrong = {place: {**saved[place], "seed": 9}}
    told = models.caught(lambda: fast[2].load_state_dict(wrong))
    unchanged = fast[2].observers[0].bypass is not None and repr(fast[2].reducer) == "Exact()"
    fast[2].load_state_dict(saved)
    return told[0], unchanged, fast[2].observers[0].bypass is None, repr(fast[2].reducer) == repr(slow[2].reducer)


def test_loading_what_another_run_picked(two: Workers) -> None:
    for kind, unchanged, taken, alike in two.run(loads):
        assert (kind, unchanged, taken, alike) == ("StateError", True, True, True)


def alone(rank: int, world: int) -> Any:
    model, attachment = models.wrap(models.mlp(layers=2), cc.Auto(steps=2))
    for x in models.batches(0, 8):
        model(x).sum().backward()
    return attachment.step


def test_one_rank_has_nothing_to_pick(crew: Crew) -> None:
    assert Workers(1, crew=crew).run(alone) == [8]


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: cc.Auto(methods=()), "give reducers"),
        (lambda: cc.Auto(methods=("TopK",)), "a name alone"),
        (lambda: cc.Auto(steps=1), "steps=1"),
        (lambda: cc.Auto(margin=1.0), "margin=1.0"),
    ],
)
def test_mistakes(make: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        make()
