"""Compressed optimizers where something goes wrong: bad steps, missing gradients, peers that differ or die."""

from __future__ import annotations

import copy
import os
from itertools import pairwise
from typing import Any

import pytest
import torch

from tests.optim.saved import same

from . import models
from .compressed import KINDS, MEETINGS, advance, apart, given, make, moment, ratios
from .given import Given
from .harness import Workers

pytestmark = pytest.mark.multi
every = pytest.mark.parametrize("kind", KINDS)
ONE_BIT = ("OneBitAdam", "OneBitLamb")


def full(*values: Any) -> Any:
    """What another line covers as well."""
    return pytest.param(*values, marks=pytest.mark.full)


def stumbles(rank: int, world: int, kind: str, when: int, ddp: bool, scaled: range) -> Any:
    """One rank's gradient is infinite in one step; a scaler drives those of ``scaled``."""
    model, own = make(kind, Given(), ddp, weight_decay=0.1)
    used, none = (torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=10000, enabled=e) for e in (True, False))
    met, unchanged = [], False
    for step in range(KINDS[kind].steps):
        own.zero_grad()
        now, scaler = given(kind, rank, step), used if step in scaled else none
        if step == when:
            before, state = (models.flat(model), moment(own)), copy.deepcopy(own.state_dict())
            if rank == 1:
                now["a"][0, 0] = float("inf")
        scaler.scale(model(now)).backward()
        scaler.step(own)
        scaler.update()
        if step == when:
            unchanged = same(before, (models.flat(model), moment(own)))
            unchanged &= same(state, own.state_dict()) or kind == "ZeroOneAdam"  # whose local steps count
        if not apart(own):
            met.append((own.steps, models.flat(model), moment(own)))
    own.detach()
    return met, unchanged, own.steps, used.get_scale()


BAD = [
    *[(k, *case) for k in ONE_BIT for case in ((7, True, True), (1, False, True), (7, False, False))],
    *[full(k, *case) for k in ONE_BIT for case in ((7, True, False), (7, False, True), (1, False, False))],
    *[("ZeroOneAdam", *case) for case in ((1, True, True), (2, False, True), (10, True, True), (10, False, True))],
    *[full("ZeroOneAdam", when, True, False) for when in (1, 2, 10, 13)],
    *[full("ZeroOneAdam", *case) for case in ((1, False, True), (2, True, True), (13, False, True))],
    ("ZeroOneAdam", 13, True, True),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "when", "ddp", "scaled"), BAD)
def test_one_ranks_bad_step(two: Workers, kind: str, when: int, ddp: bool, scaled: bool) -> None:
    """Nobody's step counts, in the warm-up (without DDP or with a scaler) as after it.

    But 0/1 Adam's ranks are alone after the freeze: in a local step (10) and in one that synchronises (13) that rank's
    is left out, and all meet as they would have. Where scalers hear of it under DDP, all leave it out, and keep one
    scale."""
    told = KINDS[kind]
    results = two.run(stumbles, kind=kind, when=when, ddp=ddp, scaled=range(told.steps if scaled else 0))
    late = kind == "ZeroOneAdam" and when > told.freeze
    for rank, (met, unchanged, steps, _) in enumerate(results):
        assert steps == told.steps - (not late)
        assert unchanged == (not late or (when == 10 and (rank == 1 or (ddp and scaled))))
        meetings = MEETINGS if kind == "ZeroOneAdam" else range(told.freeze + 1, told.steps)
        assert sorted({t for t, *_ in met if t > told.freeze}) == [t for t in meetings if t <= steps]
        for one, other in zip(met, results[0][0], strict=True):
            assert torch.isfinite(one[1]).all() and same(one, other)
    if scaled:
        assert [scale for *_, scale in results] == [32.0 if ddp else 64.0, 32.0]  # without DDP it is a rank's own


@pytest.mark.parametrize(("scaled", "heard"), [(range(8, KINDS["ZeroOneAdam"].steps), True), (range(9), False)])
def test_a_scaler_that_begins_or_ends_after_the_freeze(two: Workers, scaled: range, heard: bool) -> None:
    """0/1 Adam's ranks agree on it when they synchronise: all leave a bad step out, or that rank alone."""
    results = two.run(stumbles, kind="ZeroOneAdam", when=10, ddp=True, scaled=scaled)
    assert [unchanged for _, unchanged, *_ in results] == [heard, True]
    assert [scale for *_, scale in results] == [32.0 if heard else 64.0] * 2


def branches(rank: int, world: int, kind: str, ddp: bool) -> Any:
    """After the freeze: a parameter's gradient on rank 0 alone, then on no rank."""
    model, own = make(kind, Given(), ddp, weight_decay=0.1, **({"find_unused_parameters": True} if ddp else {}))
    kept: list[Any] = []
    for step in range(KINDS[kind].freeze + 6):
        own.zero_grad()
        late, now = step - KINDS[kind].freeze, given(kind, rank, step)
        if late >= 3 or (late >= 0 and rank == 1):
            del now["b"]
        model(now).backward()
        own.step()
        p = next(p for n, p in model.named_parameters() if n.endswith("b"))
        kept.append((p.detach().clone(), copy.deepcopy(own.state_dict()["state"][1]), [r[1:2] for r in ratios(own)]))
    own.detach()
    return models.flat(model), kept


@pytest.mark.parametrize("ddp", [True, False])
@pytest.mark.parametrize("kind", ONE_BIT)
def test_a_parameter_that_some_ranks_do_not_use(two: Workers, kind: str, ddp: bool) -> None:
    """Where no rank has a gradient all that is its own stays as it is, if DDP does not give it one of zeros."""
    results, end = two.run(branches, kind=kind, ddp=ddp), KINDS[kind].freeze + 2
    for x, kept in results:
        assert torch.equal(x, results[0][0])
        moved = [not torch.equal(one[0], other[0]) for one, other in pairwise(kept)]
        assert moved[:end] == [True] * end
        counted = ("step", "compcomm", *(["exp_avg_sq"] if kind == "OneBitAdam" else []))  # as Adam would divide it
        assert ddp or all(same(kept[end], later, *counted) for later in kept[end:])


def differs(rank: int, world: int, kind: str, options: list[str]) -> Any:
    """What each difference between ranks is told as."""
    told: list[Any] = []
    for option in options:
        asked: dict[str, Any] = {option: 0.2 * (1 + rank)}
        if option == "freeze" or option in KINDS["ZeroOneAdam"].options:
            asked = {option: 3 + rank}
        elif option == "wrong":
            asked = {"lr": -1.0} if rank == 1 else {}
        told.append(models.caught(lambda asked=asked: make(kind, Given(), **asked)))
    return told


OPTIONS = {
    "OneBitAdam": [],
    "OneBitLamb": ["factor_threshold", "max_coeff"],
    "ZeroOneAdam": ["var_update_scaler", "local_step_scaler", "local_step_clipper"],
}


@every
def test_ranks_that_differ(two: Workers, kind: str) -> None:
    asked = ["freeze", "lr", "wrong", *OPTIONS[kind]]
    for rank, found in enumerate(two.run(differs, kind=kind, options=asked)):
        for option, (raised, message, _) in zip(asked, found, strict=True):
            assert raised == ("ValueError" if option == "wrong" and rank == 1 else "AgreementError"), message
            values = "0.2 on rank 0, 0.4" if option == "factor_threshold" else "3 on rank 0, 4"
            says = {"lr": "groups", "max_coeff": "groups", "wrong": "lr=-1.0"}.get(
                option, f"{option}: {values} on rank 1"
            )
            assert says in message


def deserts(rank: int, world: int, kind: str) -> Any:
    """Rank 1 dies where the ranks were together; the other steps until it misses it."""
    model, own = make(kind, Given())
    ends = 15 if kind == "ZeroOneAdam" else KINDS[kind].freeze + 2
    advance(kind, model, own, rank, range(ends))
    own.zero_grad()
    if kind != "ZeroOneAdam":
        model(given(kind, rank, 99)).backward()
    if rank == 1:
        os._exit(3)
    if kind == "ZeroOneAdam":
        advance(kind, model, own, rank, range(ends, ends + 2))  # alone, and does not know it
        model(given(kind, rank, 99)).backward()
    before, alone = models.flat(model), apart(own)
    told = models.caught(own.step)
    again = models.caught(own.step)
    return told, again, torch.equal(before, models.flat(model)), alone


@every
def test_a_dead_peer(two: Workers, kind: str) -> None:
    told, again, unchanged, alone = two.run(deserts, kind=kind, dead=(1,))[0]
    assert told[0] == "TransportError" and "a peer has died" in told[1]
    if kind == "ZeroOneAdam":
        assert alone == 3
    else:
        assert again[0] in ("TransportError", "RuntimeError") and unchanged
