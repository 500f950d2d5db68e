"""Every feedback scheme in the shapes that a host takes: dtypes, compilation, failures, checkpoints, training."""

from __future__ import annotations

import io
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import compcomm as cc
from tests.schemes import CONSERVING, SCHEMES, make

from . import models
from .given import SHAPES, Given, Named, gradients, hooked, simulate
from .harness import Workers

pytestmark = pytest.mark.multi

DTYPES = {"a": torch.bfloat16, "b": torch.bfloat16, "c": torch.bfloat16, "d": torch.float64}
STEPS = 5


def mixes(rank: int, world: int, scheme: str) -> Any:
    module = Given(DTYPES)
    model, attachment = hooked(module, SCHEMES[scheme])
    found: list[Named] = []
    for step in range(STEPS):
        model.zero_grad()
        model(gradients(rank, step)).backward()
        found.append({n: p.grad.clone() for n, p in module.named_parameters()})
    return found, models.slots(attachment)


def cast(given: Named) -> Named:
    return {n: g.to(DTYPES.get(n, g.dtype)).float() for n, g in given.items()}


@pytest.mark.turns(3)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_parameters_of_any_dtype(two: Workers, scheme: str) -> None:
    """bfloat16, float64 and float32 side by side: fp32 inside, and the mean rounded once, to the gradient's type."""
    results = two.run(mixes, scheme=scheme)
    given = [[cast(gradients(rank, t)) for rank in range(2)] for t in range(STEPS)]
    means, simulator = simulate(make(scheme), 2, given, [list(SHAPES)])
    for rank, (found, slots) in enumerate(results):
        for mean, due in zip(found, means, strict=True):
            for n in SHAPES:
                assert mean[n].dtype == DTYPES.get(n, torch.float32)
                assert torch.equal(mean[n], due[n].to(mean[n].dtype)), n
        for slot, entries in simulator.stores[rank].state_dict().items():
            assert all(torch.equal(slots[slot][n], t) for n, t in entries.items()), slot


class Scaler:
    """As much of a GradScaler as a hook sees; torch's own refuses parameters of float16."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def get_scale(self) -> float:
        return self.scale


def signs() -> Named:
    """1.5 of a random sign, the same in every step and on every rank: residuals grow until they are sent."""
    g = torch.Generator().manual_seed(3)
    return {n: torch.randn(shape, generator=g).sign() * 1.5 for n, shape in SHAPES.items()}


def overflows(rank: int, world: int, scheme: str) -> Any:
    """Means that fit fp32 and not the parameter's own float16, until the scale has fallen."""
    scaler = Scaler(2.0**15)
    model, attachment = hooked(Given({"a": torch.float16}), SCHEMES[scheme], scaler=scaler)
    applied = torch.zeros(SHAPES["a"], dtype=torch.float64)
    for _ in range(16):
        model.zero_grad()
        (model(signs()) * scaler.scale).backward()
        if models.grads(model).isfinite().all():
            applied += model.module.a.grad.double() / scaler.scale
        else:
            scaler.scale /= 2
    return scaler.scale, applied, models.slots(attachment)


@pytest.mark.turns(3, first=1)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_mean_that_does_not_fit_float16(two: Workers, scheme: str) -> None:
    results = two.run(overflows, scheme=scheme)
    for scale, applied, slots in results:
        assert all(bool(t.isfinite().all()) for e in slots.values() for t in e.values()), "it poisoned the memory"
        assert scale == results[0][0]
        assert scale > 100
        assert torch.equal(applied, results[0][1])
    if scheme in CONSERVING and "two-phase" not in scheme:
        assert results[0][0] < 2.0**15, "nothing overflows: the test shows nothing"
        residual = sum(r[2]["residual"]["a"].double() for r in results) / 2
        lost = float((results[0][1].view(-1) + residual - 16 * signs()["a"].view(-1)).abs().max())
        assert lost < 16 * 1.5 * 2e-3, f"{lost} is lost: more than float16 rounds off"


def compiles(rank: int, world: int, schemes: tuple[str, ...], setting: Any) -> Any:
    xs = models.batches(rank, 3, 400)
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for scheme in schemes:
        eager, _ = hooked(models.mlp(3, 400), SCHEMES[scheme], megabytes=1)
        model, _ = models.wrap(models.mlp(3, 400), megabytes=1)  # the compiler refuses less than the first bucket
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's own
            torch._dynamo.reset()
            with torch._dynamo.config.patch(optimize_ddp=setting):
                compiled = torch.compile(model, backend="aot_eager" if scheme == "EF" else "eager")
                cc.attach(compiled, make(scheme), timeout=20, optimizer=torch.optim.SGD(model.parameters()))
                found[scheme] = models.train(eager, xs), models.train(compiled, xs)
    return found


@pytest.mark.timeout(180)
@pytest.mark.parametrize("setting", ["ddp_optimizer", "no_optimization"])
def test_a_compiled_model(two: Workers, setting: str) -> None:
    """Where the compiler cuts the graph is no scheme's affair, so that each way meets others of them."""
    schemes = tuple(SCHEMES)[:: 3 if setting == "ddp_optimizer" else 4]
    results = two.run(compiles, schemes=schemes, setting=setting, timeout=150)
    for found in results:
        for scheme, (eager, compiled) in found.items():
            assert torch.equal(compiled, results[0][scheme][1]), scheme
            torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-5)


def reduces_in_python(rank: int, world: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch._dynamo.reset()
        with torch._dynamo.config.patch(optimize_ddp="python_reducer"):
            model, _ = models.wrap(models.mlp(2, 64))
            told = models.caught(lambda: cc.attach(model, make("EF"), timeout=20))
            if told[0] == "nothing":
                compiled = torch.compile(model, backend="eager")
                told = models.caught(lambda: models.train(compiled, models.batches(rank, 2)))
        torch._dynamo.reset()
    return told


def test_pythons_own_reducer_is_refused(two: Workers) -> None:
    for kind, message, _ in two.run(reduces_in_python):
        assert "optimize_ddp = 'ddp_optimizer'" in message, (kind, message)


def fails(rank: int, world: int, scheme: str, after: int) -> Any:
    """Rank 1 raises in step 3, in its second bucket, before that bucket's collective number ``after``."""
    module = Given()
    model, attachment = hooked(module, SCHEMES[scheme], timeout=15)
    for step in range(3):
        model.zero_grad()
        model(gradients(rank, step)).backward()
    kind, original = type(attachment.reducer), type(attachment.reducer).reduce

    def breaks(self: Any, source: Any, target: Any, state: Any, ctx: Any) -> Any:
        flow = original(self, source, target, state, ctx)
        if rank != 1 or ctx.bucket != 1 or source.x.flat.is_meta:
            return (yield from flow)
        op = next(flow)
        for number in range(9):
            if number == after:
                raise ZeroDivisionError("the scheme's own mistake")
            yield op
            op = flow.send(False)
        raise AssertionError("no such collective")

    kind.reduce = breaks
    try:
        model.zero_grad()
        first = models.caught(lambda: model(gradients(rank, 3)).backward())
    finally:
        kind.reduce = original
    second = models.caught(lambda: model(gradients(rank, 4)).backward())
    state = attachment.setup.store.state_dict()
    return first, second, all(bool(t.isfinite().all()) for e in state.values() for t in e.values())


ROUNDS = {"EControl, two-phase": 2, "DGC, unmasked": 2, "EF, two-phase": 2, "EF21, two-phase": 2, "PowerSGD": 2}
"""Collectives per bucket, where it is not one."""


@pytest.mark.turns(3, first=2)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_scheme_that_raises_on_one_rank(three: Workers, scheme: str) -> None:
    for after in range(ROUNDS.get(scheme, 1)):
        results = three.run(fails, scheme=scheme, after=after, timeout=40)
        for rank, (first, second, finite) in enumerate(results):
            assert first[0] == ("ZeroDivisionError" if rank == 1 else "PeerError"), (rank, first)
            assert ("own mistake" if rank == 1 else "failed in step 3") in first[1]
            assert second[0] == "RuntimeError"
            assert "broke in step 3" in second[1]
            assert finite, "what a failed rank sends entered the memory"


def resumes(rank: int, world: int, scheme: str) -> Any:
    """Saved after a step that overflowed, with scaler and Adam; resumed by another model."""

    def go(model: Any, optimizer: Any, scaler: Any, steps: range) -> list[Tensor]:
        ends: list[Tensor] = []
        for step in steps:
            optimizer.zero_grad()
            given = gradients(rank, step)
            if step == 3 and rank == 1:
                given["a"][0, 0] = float("nan")
            if step % 3 == 1:
                given["b"].zero_()
            scaler.scale(model(given)).backward()
            scaler.step(optimizer)
            scaler.update()
            ends.append(models.flat(model))
        return ends

    def begin() -> Any:
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        model, attachment = hooked(Given(), SCHEMES[scheme], scaler=scaler, seed=5)
        return model, torch.optim.Adam(model.parameters(), lr=0.01), scaler, attachment

    *first, attachment = begin()
    go(*first, range(4))
    file = io.BytesIO()
    parts = {"model": first[0].module, "optimizer": first[1], "scaler": first[2], "hook": attachment}
    torch.save({n: part.state_dict() for n, part in parts.items()}, file)
    on = go(*first, range(4, 9))
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    *second, other = begin()
    for part, name in ((second[0].module, "model"), (second[1], "optimizer"), (second[2], "scaler"), (other, "hook")):
        part.load_state_dict(saved[name])
    again = go(*second, range(4, 9))
    return on, again, models.slots(attachment), models.slots(other), other.step


@pytest.mark.turns(3, first=1)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_run_resumes_bit_for_bit(two: Workers, scheme: str) -> None:
    results = two.run(resumes, scheme=scheme)
    for on, again, before, after, step in results:
        assert step == 9
        for a, b, c in zip(on, again, results[0][1], strict=True):
            assert torch.equal(a, b)
            assert torch.equal(b, c)
        assert not torch.equal(on[0], on[-1])
        assert before.keys() == after.keys()
        assert all(torch.equal(after[s][n], t) for s, e in before.items() for n, t in e.items())


class Regression(nn.Module):
    """Least squares whose minimum is another on every rank."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.bias = nn.Parameter(torch.zeros(16, 96)), nn.Parameter(torch.zeros(96))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.first + self.bias


def data(rank: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(rank + 7)
    shared = torch.Generator().manual_seed(1)
    truth = torch.randn(16, 96, generator=shared) + 0.3 * torch.randn(16, 96, generator=g)
    x = torch.randn(128, 16, generator=g)
    return x, x @ truth + 1.0


def trains(rank: int, world: int, schemes: tuple[str, ...], steps: int) -> Any:
    """Each scheme's loss over all ranks' data at the end, and its parameters."""
    found: dict[str, tuple[float, Tensor]] = {}
    for scheme in schemes:
        model, attachment = hooked(Regression(), SCHEMES[scheme])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.015 if scheme == "DGC" else 0.15)
        x, y = data(rank)
        for _ in range(steps):
            optimizer.zero_grad()
            (model(x) - y).square().sum(1).mean().div(2).backward()
            optimizer.step()
        attachment.detach()
        with torch.no_grad():
            found[scheme] = (
                sum(loss(model.module(x), y) for x, y in map(data, range(world))) / world,
                models.flat(model),
            )
    return found


def loss(found: Tensor, y: Tensor) -> float:
    return float((found - y).square().sum(1).mean() / 2)


@pytest.mark.parametrize("first", [0, *(pytest.param(i, marks=pytest.mark.full) for i in (1, 2))])
def test_training_comes_near_the_exact_mean(two: Workers, first: int) -> None:
    """The excess over the minimum, as a part of what it was at the beginning."""
    one, other = two.run(trains, schemes=tuple(SCHEMES)[first::3], steps=140, timeout=100)
    xs, ys = zip(*map(data, range(2)), strict=True)
    x, y = torch.nn.functional.pad(torch.cat(xs), (0, 1), value=1.0), torch.cat(ys)
    start, best = loss(torch.zeros_like(y), y), loss(x @ torch.linalg.lstsq(x, y).solution, y)
    for name, (found, end) in one.items():
        assert torch.equal(end, other[name][1]), name
        assert -1e-3 < (found - best) / (start - best) < 0.1, name
