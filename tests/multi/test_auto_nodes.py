"""Auto with nodes of two ranks. The ranks of a node own other parameters, time other kernels and see another link; all
of them go on with one pick. Where plans are not what is tested, they are made up, and so is the time."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import compcomm as cc
from compcomm.hosts import auto
from compcomm.hosts.auto import SKIPPED_STEPS, AutoController
from compcomm.plan import in_run
from compcomm.plan.link import Link
from compcomm.plan.methods import PLAIN, Method, method

from . import models
from .harness import Workers
from .on_hosts import nodes_of

pytestmark = pytest.mark.multi

METHODS = (cc.ErrorFeedback(cc.TopK(ratio=0.01)), cc.PowerSGD(2))
AUTO = cc.Auto(methods=METHODS, steps=2, margin=0.0)
BEFORE = SKIPPED_STEPS + AUTO.steps + 1
AFTER = BEFORE + 2


class Plan(NamedTuple):
    """A made-up one: what it picks is said beforehand."""

    methods: tuple[Method, ...]
    pick_of: int

    def pick(self, margin: float) -> int:
        return self.pick_of

    def why(self, picked: int) -> str:
        return f"Auto picks {self.methods[picked].text}"


@contextmanager
def planned(pick: int | None, seconds: float = 1.0) -> Iterator[None]:
    """Plans of this pick (None: nobody may ask for one), and steps that take so long."""
    planner, clock, now = AutoController.planner, auto.perf_counter, [0.0]

    def propose(transport: Any, layouts: Any, compute: float, given: Any, *_: Any, **__: Any) -> Plan:
        assert pick is not None and transport.world == 2
        return Plan((PLAIN, *map(method, given)), pick)

    def tick() -> float:
        now[0] += seconds
        return now[0]

    AutoController.planner, auto.perf_counter = staticmethod(propose), tick
    try:
        yield
    finally:
        AutoController.planner, auto.perf_counter = planner, clock


def attached(reducer: Any) -> Any:
    """A bucket for each layer: of some a rank owns all, and the other rank of its node nothing."""
    with nodes_of(2, 2):
        between = {} if reducer is None else {"between": "nodes", "seed": 3}
        return models.wrap(models.mlp(), reducer, megabytes=0.001, **between)


def run(model: Any, rank: int, steps: range) -> list[Tensor]:
    found: list[Tensor] = []
    for x in models.batches(rank, len(steps), start=steps.start):
        model.zero_grad()
        model(x).pow(2).mean().backward()
        found.append(models.grads(model))
    return found


def state(hook: Any) -> tuple[str, bool]:
    """The reducer at work, and whether DDP averages by itself."""
    return repr(hook.reducer), hook.observers[0].bypass is not None


def picks(rank: int, world: int, own: list[int], later: list[float]) -> Any:
    """``own``: what each rank would pick; ``later``: how long its steps take then, in place of 1."""
    plain, _ = attached(None)
    with redirect_stderr(io.StringIO()) as said:
        model, hook = attached(AUTO)
        with planned(own[rank]):
            found = run(model, rank, range(BEFORE))
        picked, saved, merged = state(hook), hook.state_dict(), hook.portable_state_dict()
        with planned(None, later[rank]):
            found += run(model, rank, range(BEFORE, BEFORE + AFTER))
    resumed: list[Any] = []
    for portable in (False, True):
        with redirect_stderr(io.StringIO()), planned(None, 0.1):
            again, other = attached(AUTO)
            other.load_portable_state_dict(merged) if portable else other.load_state_dict(saved)
            ahead = run(again, rank, range(BEFORE, BEFORE + 3))
        unlike = max(float((a - b).abs().max()) for a, b in zip(ahead, found[BEFORE:], strict=False))
        resumed.append((state(other), other.step, unlike, other.observers[0].line))
    off = [float((a - b).abs().max()) for a, b in zip(run(plain, rank, range(BEFORE + AFTER)), found, strict=True)]
    return found, off, picked, state(hook), resumed, said.getvalue()


NOTHING, TOPK, POWERSGD = (
    ("Exact()", True), ("ErrorFeedback(AllGather(TopK(ratio=0.01)))", False), ("PowerSGD(2)", False)
)  # fmt: skip


@pytest.mark.parametrize(
    "own, later, picked, ends",
    [
        ([1, 2, 0, 2], [0.5] * 4, TOPK, TOPK),
        ([2, 0, 1, 1], [0.5, 0.5, 0.5, 2.0], POWERSGD, NOTHING),
        ([0, 1, 2, 2], [1.0] * 4, NOTHING, NOTHING),
    ],
    ids=["one is picked", "one is picked and taken back", "nothing is picked"],
)
def test_all_ranks_go_on_with_one_pick(four: Workers, own: Any, later: Any, picked: Any, ends: Any) -> None:
    results = four.run(picks, own=own, later=later)
    for rank, (found, off, first, last, resumed, said) in enumerate(results):
        assert (first, last) == (picked, ends)
        assert all(torch.equal(a, b) for a, b in zip(found, results[0][0], strict=True)), "ranks differ"
        assert max(off[:BEFORE]) < 1e-6 and (off[BEFORE] > 1e-6) is (picked is not NOTHING)
        assert (off[-1] > 1e-6) is (ends is not NOTHING)
        assert ("Auto picks" in said) is (rank == 0) and ("goes back" in said) is (rank == 0 and picked is not ends)
        for portable, (kept, step, unlike, line) in enumerate(resumed):
            assert (kept, step) == (picked, BEFORE + 3)
            if picked is NOTHING:  # four addends in DDP's own order, which is that of its buckets
                assert unlike < 1e-6
            else:
                assert unlike == 0 or portable
            assert re.fullmatch("Auto goes on with .*, which it had picked before", line)


def measures(rank: int, world: int) -> Any:
    """With the planner itself, on a link where nothing pays."""
    real = in_run.measure
    in_run.measure = lambda *_: Link.of("100gbit", "1us")
    try:
        with redirect_stderr(io.StringIO()) as said:
            model, hook = attached(cc.Auto(methods=METHODS, steps=2, margin=0.5))
            run(model, rank, range(BEFORE + 1))
    finally:
        in_run.measure = real
    return state(hook), said.getvalue()


def test_the_planner_itself(four: Workers) -> None:
    for rank, (found, said) in enumerate(four.run(measures)):
        assert found == NOTHING and ("Auto picks no compression" in said) is (rank == 0)
