"""Every exported reducer on every host, on real processes: what it promises holds there, or attach says why not.

A class's first case meets all hosts; with ``--full`` all cases do, and compressors without a reducer around them.
"""

from __future__ import annotations

from contextlib import redirect_stderr
from hashlib import sha256
from io import StringIO
from typing import Any, NamedTuple

import pytest
import torch

import compcomm as cc
from compcomm.core.reducer import parts
from compcomm.core.structure import has_review
from compcomm.testing.simulated import roundoff
from tests.contract.cases import COMPRESSORS, REDUCERS

from . import models, on_hosts
from .harness import Workers

pytestmark = pytest.mark.multi

TOGETHER = 7
"""Cases in a scenario: Gloo's groups, and their threads, stay until it ends."""


class Found(NamedTuple):
    """What one rank has of a reducer at work. ``lost``: the parameters of which not everything is kept, for good."""

    steps: int
    finite: bool
    weights: str
    due: int
    sent: int
    alike: bool
    applied: on_hosts.Named
    residual: on_hosts.Named
    lost: set[str]
    variable: bool


def at_work(rank: int, world: int, name: str, cases: list[Any]) -> Any:
    """By case: what attach raised, and what was found."""
    make, found = on_hosts.host(name), list[Any]()
    for case in cases:
        made: list[on_hosts.Hosted] = []
        with redirect_stderr(StringIO()):
            told = models.caught(lambda case=case, made=made: made.append(make(case)))
            found.append((told, trains(make, case, *made, rank == 0) if made else None))
    return found


def trains(make: Any, case: Any, one: on_hosts.Hosted, first: bool) -> Found:
    """Some steps, of which the last is none that something is measured after; a copy and the original then go on."""
    hook, last = one.hook, 1
    while has_review(hook.reducer, last):
        last += 1
    for step in range(last):
        one.step(step)
    before = hook.report().bytes_sent * last
    means = one.step(last)
    sent, due = hook.report().bytes_sent * (last + 1) - before, one.due_bytes(last)
    saved = hook.state_dict()

    other = make(case)
    if not one.sharded:  # DDP cuts its buckets anew after a first step; what that leaves is replaced
        other.step(77)
    other.take(one)
    other.hook.load_state_dict(saved)
    here, there = one.step(last + 1), other.step(last + 1)
    alike = all(torch.equal(here[n], there[n]) for n in here) and other.hook.step == last + 2
    weights = sha256(b"".join(t.numpy().tobytes() for t in one.weights().values())).hexdigest()
    finite = all(bool(t.isfinite().all()) for t in (*means.values(), *here.values()))
    residual = hook.portable_state_dict()["slots"].get("residual", {})
    variable, lost = hook.reducer.traits.variable, one.forgetful()
    for each in (one, other):
        each.hook.detach()
    kept = {n: t.double() for n, t in residual.items()} if first else {}
    return Found(last + 2, finite, weights, due, round(sent), alike, one.applied, kept, lost, variable)


def refusal(case: Any, name: str) -> str:
    """Why a host should not take a reducer, as ``settle`` and ``check`` say it; "": it should."""
    layout = cc.Layout.of(on_hosts.SHAPES.items())
    try:
        cc.settle(case, on_hosts.HOSTS[name], rows=name == "FSDP2").check(layout)
    except ValueError as error:
        return str(error)
    return ""


def broken(case: Any, name: str, told: list[Any], found: list[Any]) -> list[str]:
    """What does not hold, of a case on a host: of all ranks' answers."""
    why = refusal(case, name)
    if why or any(one is None for one in found):
        names_it = any(type(part).__name__ in why for part in every_part(case))
        same = all(one[:2] == ("ValueError", why) for one in told)
        return [] if why and same and names_it else [f"refused with {told}, where {why!r} is due"]
    faults = [
        (all(one.finite for one in found), "a mean is not finite"),
        (len({one.weights for one in found}) == 1, "ranks differ"),
        (all(one.alike for one in found), "what was resumed goes on otherwise"),
    ]
    for rank, one in enumerate(found):
        fits = one.sent <= one.due if one.variable else one.sent == one.due
        faults.append((fits, f"rank {rank} sends {one.sent} bytes, and a dry run {one.due}"))
    lost = set[str]().union(*(one.lost for one in found))
    gaps = on_hosts.gaps(name, [one.applied for one in found], range(found[0].steps), found[0].residual, lost)
    # A sum of numbers of two bytes rounds on the wire, where nobody remembers it.
    world = on_hosts.HOSTS[name]
    most = max(1e-6, 2 * world * roundoff(case, world))
    for parameter, gap in gaps.items():
        faults.append((gap < most, f"{gap:.2g} of what was due to {parameter} is neither applied nor remembered"))
    return [fault for good, fault in faults if not good]


def every_part(case: Any) -> list[Any]:
    return [case, *(inner for part in parts(case) for inner in every_part(part))]


def chosen() -> list[Any]:
    """(host, cases) with an id and a mark, some cases to a test."""
    found: list[Any] = []
    firsts = [alike[0] for alike in REDUCERS.values()]
    further = [case for alike in REDUCERS.values() for case in alike[1:]]
    further += [case for alike in COMPRESSORS.values() for case in alike]
    for name in on_hosts.HOSTS:
        for cases, marks in ((firsts, []), (further, [pytest.mark.full])):
            for at in range(0, len(cases), TOGETHER):
                some = cases[at : at + TOGETHER]
                found.append(pytest.param(name, some, id=f"{name}-{some[0]!r}-and-{len(some) - 1}-more", marks=marks))
    return found


@pytest.mark.parametrize("name, cases", chosen())
def test_promises_hold_on_every_host(four: Workers, name: str, cases: list[Any]) -> None:
    ranks = four.run(at_work, name=name, cases=cases, timeout=100)
    faults: list[str] = []
    for case, *answers in zip(cases, *ranks, strict=True):
        told, found = zip(*answers, strict=True)
        faults += [f"{case!r} on {name}: {fault}" for fault in broken(case, name, list(told), list(found))]
    assert not faults, "\n".join(faults)
