"""What stands beside the hook: optimizers, clipping, accumulation, compilation. Each sees the simulator's mean."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import compcomm as cc
from tests.schemes import SCHEMES, make

from . import models
from .given import SHAPES, Given, Named, cut, gradients, hooked, simulate
from .harness import Workers

pytestmark = pytest.mark.multi

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "nesterov": True},
    "Adam": {"lr": 0.01},
    "AdamW": {"lr": 0.01, "foreach": True},
    "Adagrad": {"lr": 0.01},
    "Adadelta": {},
    "Adamax": {},
    "NAdam": {},
    "RAdam": {},
    "RMSprop": {"momentum": 0.5},
    "Rprop": {},
    "ASGD": {},
}
MOMENTUM = {"SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop"}
"""Those that DGC refuses, as they are above."""
STEPS = 4


def optimizer_for(name: str, model: nn.Module) -> torch.optim.Optimizer:
    return getattr(torch.optim, name)(model.parameters(), **OPTIMIZERS[name])


def refuses(rank: int, world: int) -> Any:
    told: dict[str, tuple[str, str, str]] = {}
    for name in OPTIMIZERS:
        module = Given()
        told[name] = models.caught(lambda m=module, n=name: hooked(m, SCHEMES["DGC"], optimizer=optimizer_for(n, m)))
    return told


def test_dgc_refuses_a_second_momentum(two: Workers) -> None:
    for told in two.run(refuses):
        for name, (kind, message, _) in told.items():
            assert kind == ("ValueError" if name in MOMENTUM else "nothing"), (name, message)
            assert name not in MOMENTUM or (name in message and "Set it to 0 there." in message)


def optimises(rank: int, world: int, scheme: str, names: tuple[str, ...]) -> Any:
    found: dict[str, Any] = {}
    for name in names:
        module = Given()
        optimizer = optimizer_for(name, module)
        model, attachment = hooked(module, SCHEMES[scheme], optimizer=optimizer)
        norms: list[Tensor] = []
        for step in range(STEPS):
            optimizer.zero_grad()
            model(gradients(rank, step)).backward()
            norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 3.0))
            optimizer.step()
        found[name] = models.flat(model), torch.stack(norms), cut(attachment)
    return found


def alone(name: str, means: list[Named]) -> tuple[Tensor, Tensor]:
    """The same optimizer on a model of its own, given the means."""
    model = Given()
    optimizer = optimizer_for(name, model)
    norms: list[Tensor] = []
    for mean in means:
        for n, p in model.named_parameters():
            p.grad = mean[n].clone()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 3.0))
        optimizer.step()
    return models.flat(model), torch.stack(norms)


@pytest.mark.turns(3)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_any_optimizer_after_clipping(two: Workers, scheme: str) -> None:
    """Parameters and norms to the bit those of one process that is given the means."""
    names = ("Adagrad", "Rprop", "ASGD") if "DGC" in scheme else ("SGD", "AdamW", "RMSprop", "Rprop")
    results = two.run(optimises, scheme=scheme, names=names)
    given = [[gradients(rank, t) for rank in range(2)] for t in range(STEPS)]
    means, _ = simulate(make(scheme), 2, given, [list(SHAPES)])
    for name in names:
        end, norms = alone(name, means)
        for found in results:
            assert torch.equal(found[name][0], results[0][name][0]), f"{name}: the replicas drift apart"
            assert torch.equal(found[name][1], results[0][name][1]), f"{name}: clipping differs between ranks"
            assert torch.equal(found[name][0], end), name
            assert torch.equal(found[name][1], norms), name
        assert (norms > 3.0).any(), "nothing is clipped: the test shows nothing"


def closes(rank: int, world: int, scheme: str) -> Any:
    """L-BFGS asks for several gradients in a step; each is a step of the scheme."""
    model, attachment = hooked(models.mlp(2), SCHEMES[scheme])
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
    x = models.batches(rank, 1)[0]
    asked = 0

    def closure() -> Tensor:
        nonlocal asked
        asked += 1
        optimizer.zero_grad()
        loss = model(x).pow(2).mean()
        loss.backward()
        total = loss.detach().clone()
        torch.distributed.all_reduce(total)  # its line search must decide alike
        return total

    first = float(optimizer.step(closure))
    last = float(optimizer.step(closure))
    return models.flat(model), first, last, asked, attachment.step


@pytest.mark.parametrize("scheme", ["EF, two-phase", "EF21", "PowerSGD"])
def test_lbfgs(two: Workers, scheme: str) -> None:
    results = two.run(closes, scheme=scheme)
    for end, first, last, asked, steps in results:
        assert torch.equal(end, results[0][0])
        assert last < first
        assert steps == asked > 4


def accumulates(rank: int, world: int, scheme: str, **options: Any) -> Any:
    """Three gradients a step, of which the hook sees the sum."""
    module = Given()
    model, attachment = hooked(module, SCHEMES.get(scheme, scheme), **options)
    found: list[Named] = []
    for step in range(STEPS):
        model.zero_grad()
        with model.no_sync():
            for part in range(2):
                model(gradients(rank, 3 * step + part)).backward()
        model(gradients(rank, 3 * step + 2)).backward()
        found.append({n: p.grad.clone() for n, p in module.named_parameters()})
    return found, attachment.step


def summed(rank: int, step: int) -> Named:
    parts = [gradients(rank, 3 * step + part) for part in range(3)]
    return {n: parts[0][n] + parts[1][n] + parts[2][n] for n in SHAPES}


@pytest.mark.turns(3, first=1)
@pytest.mark.parametrize("option", ["", "gradient_as_bucket_view"])
@pytest.mark.parametrize("scheme", ["Exact()", *SCHEMES])
def test_accumulation_is_one_big_batch(two: Workers, scheme: str, option: str) -> None:
    results = two.run(accumulates, scheme=scheme, **({option: True} if option else {}))
    reducer = cc.parse(SCHEMES.get(scheme, scheme))
    means, _ = simulate(reducer, 2, [[summed(rank, t) for rank in range(2)] for t in range(STEPS)], [list(SHAPES)])
    for found, steps in results:
        assert steps == STEPS
        for mean, due in zip(found, means, strict=True):
            assert all(torch.equal(mean[n], due[n]) for n in SHAPES)
    if scheme == "Exact()":
        for t, mean in enumerate(results[0][0]):
            for n in SHAPES:
                batch = torch.stack([summed(rank, t)[n] for rank in range(2)]).mean(0)
                torch.testing.assert_close(mean[n], batch, rtol=1e-6, atol=1e-6)
