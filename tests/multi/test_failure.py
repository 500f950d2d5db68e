"""What goes wrong: every rank hears of it, with the cause, within the timeout."""

from __future__ import annotations

import os
import signal
import time
import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import compcomm as cc
from compcomm.core.rows import Inputs

from . import models
from .harness import Workers

pytestmark = pytest.mark.multi


def spoil(i: Inputs, rng: Any, at: int) -> None:
    """Raises on rank 1 in step 4, in either encoding of the bucket that holds parameter ``at``."""
    if rng.rank in (1, -2) and rng.step == 4 and at in i.table[:, 2].tolist():
        raise ZeroDivisionError("the compressor's own mistake")


@dataclass(frozen=True, repr=False)
class Fragile(cc.TopK):
    at: int = 4096

    def encode_rows(self, i: Inputs, gain: Any, rng: Any, hints: Any, find: Any) -> None:
        spoil(i, rng, self.at if rng.rank == 1 else -1)
        super().encode_rows(i, gain, rng, hints, find)


@dataclass(frozen=True, repr=False)
class FragileCodes(cc.QSGD):
    """Its payloads vary in length."""

    at: int = 4096

    def encode_rows(self, i: Inputs, gain: Any, rng: Any, hints: Any, find: Any) -> None:
        spoil(i, rng, self.at)
        super().encode_rows(i, gain, rng, hints, find)


class Broken:
    """Of a reducer: rank 1 raises in step 4, before its ``after``-th collective."""

    after: int

    def reduce(self, source: Any, target: Any, state: Any, ctx: cc.Context) -> Any:
        flow = super().reduce(source, target, state, ctx)  # type: ignore[misc]
        for number in range(9):
            if (ctx.rank, ctx.step, number) == (1, 4, self.after):
                raise ZeroDivisionError("the compressor's own mistake")
            try:
                yield next(flow) if number == 0 else flow.send(False)
            except StopIteration as end:
                return end.value


@dataclass(frozen=True, repr=False)
class FragileScale(Broken, cc.SharedScale):
    after: int = 0


@dataclass(frozen=True, repr=False)
class FragilePower(Broken, cc.PowerSGD):
    after: int = 0


def raises(rank: int, world: int, reducer: Any, width: int) -> Any:
    model, _ = models.wrap(models.mlp(5, width), reducer, timeout=15)
    xs = models.batches(rank, 6, width)
    models.train(model, xs[:4])
    since = time.monotonic()
    first = models.caught(lambda: models.train(model, xs[4:5]))
    second = models.caught(lambda: models.train(model, xs[5:]))
    return first, second, time.monotonic() - since


ROUTES = {
    "AllGather": cc.ErrorFeedback(cc.AllGather(Fragile(0.1))),
    "TwoPhase": cc.ErrorFeedback(cc.TwoPhase(Fragile(0.1, at=1365))),
    "Partition": cc.Partition({"2*": cc.AllGather(Fragile(0.1)), "*": cc.TwoPhase(cc.SignScale())}),
    "SparseAllReduce": cc.ErrorFeedback(cc.SparseAllReduce(Fragile(0.1, at=1365))),
    "AllGather, variable": cc.AllGather(FragileCodes(bits=4, coding="elias")),
    "TwoPhase, variable": cc.TwoPhase(FragileCodes(bits=4, block=16, coding="elias", at=1360)),
    "SharedScale, before the norms": FragileScale(cc.QSGD(bits=4)),
    "SharedScale, before the sums": FragileScale(cc.QSGD(bits=4), after=1),
    "SharedScale, before the integers": FragileScale(cc.QSGD(bits=4), after=2),
    "PowerSGD, before P": FragilePower(rank=2),
    "PowerSGD, before Q": FragilePower(rank=2, after=1),
}


@pytest.mark.parametrize("route", ROUTES)
def test_a_compressor_that_raises_on_one_rank(three: Workers, route: str) -> None:
    results = three.run(raises, reducer=ROUTES[route], width=64)
    for rank, (first, second, seconds) in enumerate(results):
        if rank == 1:
            assert first[:2] == ("ZeroDivisionError", "the compressor's own mistake")
        else:
            assert first[0] == "PeerError"
            assert (
                "a peer failed" if route.startswith(("SharedScale", "PowerSGD")) else "rank 1 failed in step 4"
            ) in first[1]
        assert second[0] == "RuntimeError"
        assert "broke in step 4" in second[1]
        assert second[2] == first[0]
        assert seconds < 10


def dies(rank: int, world: int, reducer: str) -> Any:
    model, _ = models.wrap(models.mlp(), cc.parse(reducer), timeout=10)
    xs = models.batches(rank, 3)
    models.train(model, xs[:2])
    if rank == 1:
        seen: list[int] = []

        def hook(p: Any) -> None:
            seen.append(1)
            if len(seen) == 3:
                os.kill(os.getpid(), signal.SIGKILL)

        for p in model.parameters():
            p.register_post_accumulate_grad_hook(hook)
    since = time.monotonic()
    found = models.caught(lambda: models.train(model, xs[2:]))
    return found, models.caught(lambda: models.train(model, xs[2:])), time.monotonic() - since


@pytest.mark.parametrize("reducer", ["Exact()", "ErrorFeedback(TopK(ratio=0.1))", "TwoPhase(SignScale())"])
def test_a_worker_that_dies_in_the_middle_of_a_step(three: Workers, reducer: str) -> None:
    results = three.run(dies, reducer=reducer, dead=(1,), timeout=60)
    for rank in (0, 2):
        first, second, seconds = results[rank]
        assert first[0] == "TransportError"
        assert "a peer has died" in first[1]
        assert second[0] == "RuntimeError"
        assert seconds < 25


def hangs(rank: int, world: int) -> Any:
    model, _ = models.wrap(models.mlp(), cc.ErrorFeedback(cc.TopK(ratio=0.1)), timeout=1)
    xs = models.batches(rank, 3)
    models.train(model, xs[:2])  # in the second DDP rebuilds its buckets, with collectives of its own
    if rank == 1:
        time.sleep(3)
        return ("TransportError", "", ""), 2.0
    since = time.monotonic()
    return models.caught(lambda: models.train(model, xs[2:])), time.monotonic() - since


def test_a_worker_that_hangs_is_not_waited_for_beyond_the_timeout(two: Workers) -> None:
    for found, seconds in two.run(hangs):
        assert found[0] == "TransportError"
        assert 0.8 < seconds < 8


class Bad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        raise ArithmeticError("in the user's backward pass")


class Interrupted(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = models.mlp()
        self.broken = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body[1](self.body[0](x))
        return self.body[3](self.body[2](Bad.apply(x) if self.broken else x))


def interrupted(rank: int, world: int) -> Any:
    module = Interrupted()
    model, attachment = models.wrap(module, cc.ErrorFeedback(cc.TopK(ratio=0.1)), megabytes=0.02)
    xs = models.batches(rank, 6)
    models.train(model, xs[:3])
    before = models.slots(attachment)["residual"]
    module.broken = True
    found = models.caught(lambda: models.train(model, xs[3:4]))
    module.broken = False
    model.reducer._reset_state()
    grads: list[torch.Tensor] = []
    for x in xs[3:]:
        model.zero_grad()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*were zeroed before any optimizer took them")
            model(x).pow(2).mean().backward()
        grads.append(models.grads(model))
    after = models.slots(attachment)["residual"]
    own = Interrupted()
    with torch.no_grad():
        for p, q in zip(own.parameters(), model.parameters(), strict=True):
            p.copy_(q)
    true: list[torch.Tensor] = []
    for x in xs[3:]:
        own.zero_grad()
        own(x).pow(2).mean().backward()
        true.append(models.grads(own))
    names = [n for n, _ in own.named_parameters()]
    zero = {n: torch.zeros_like(p) for n, p in own.named_parameters()}
    change = torch.cat([(after.get(n, zero[n]) - before.get(n, zero[n])).double().view(-1) for n in names])
    # Layers 3 and 2 were on their way: what they held stays in the residual (biases travel exact and have none).
    kept = ("body.3.weight", "body.2.weight")
    held = torch.cat([torch.full_like(p, n in kept).double().view(-1) for n, p in own.named_parameters()])
    return found, sum(grads), sum(true) + held * true[0], change, attachment.step


def test_a_backward_pass_that_raised_on_all_ranks_loses_nothing(two: Workers) -> None:
    results = two.run(interrupted)
    true = (results[0][2] + results[1][2]) / 2
    change = (results[0][3] + results[1][3]) / 2
    for found, applied, *_, steps in results:
        assert found[:2] == ("ArithmeticError", "in the user's backward pass")
        assert steps == 7  # the interrupted one counts
        torch.testing.assert_close(applied + change, true, rtol=1e-5, atol=1e-6)
