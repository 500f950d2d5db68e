"""Steps that the optimizer skips, parameters that nobody used, and loss scales: nothing is lost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import compcomm as cc

from . import models
from .harness import Workers

pytestmark = pytest.mark.multi


class Scaler:
    """As much of a GradScaler as a hook sees."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def get_scale(self) -> float:
        return self.scale


class Spoiled(torch.autograd.Function):
    """The identity, whose gradient has an infinite element while ``at`` is set."""

    at = False

    @staticmethod
    def forward(ctx: Any, w: torch.Tensor) -> torch.Tensor:
        return w.clone()

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        if Spoiled.at:
            g = g.clone()
            g.view(-1)[7] = float("inf")
        return g


class Spoilable(nn.Module):
    """Four layers, one per bucket; layer 1's gradient (bucket 2, as buckets go backward) can be spoiled."""

    def __init__(self) -> None:
        super().__init__()
        self.body = models.mlp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, layer in enumerate(self.body):
            weight = Spoiled.apply(layer.weight) if i == 1 else layer.weight
            x = nn.functional.linear(x, weight, layer.bias)
        return x


def overflows(rank: int, world: int, reducer: str, scale: float) -> Any:
    scaler = Scaler(scale)
    module, own = Spoilable(), Spoilable()
    model, attachment = models.wrap(module, cc.parse(reducer), megabytes=0.016, scaler=scaler)
    xs = models.batches(rank, 7)
    applied: Any = 0
    true: Any = 0
    spoiled: dict[str, bool] = {}
    for step, x in enumerate(xs):
        Spoiled.at = rank == 1 and step == 4
        model.zero_grad()
        (model(x).pow(2).mean() * scaler.scale).backward()
        found = {n: p.grad / scaler.scale for n, p in module.named_parameters()}
        own.zero_grad()
        own(x).pow(2).mean().backward()
        grads = {n: p.grad for n, p in own.named_parameters()}
        if step == 4:
            spoiled = {n: bool(g.isnan().all()) for n, g in found.items()}
            for g in grads.values():
                g[~torch.isfinite(g)] = 0  # what is not finite never enters
        else:
            applied = applied + torch.cat([g.double().view(-1) for g in found.values()])
        # A skipped step's gradient stays in the residual; biases travel exact and have none.
        keep = {n: g * (step != 4 or "weight" in n) for n, g in grads.items()}
        true = true + torch.cat([g.double().view(-1) for g in keep.values()])
    Spoiled.at = False
    slots = models.slots(attachment)
    zero = {n: torch.zeros_like(p) for n, p in module.named_parameters()}
    residual = torch.cat([slots["residual"].get(n, zero[n]).double().view(-1) for n in zero])
    server = torch.zeros_like(residual)
    if "server" in slots:
        start = 0
        for n, z in zero.items():
            for name, part in slots["server"].items():
                if name == n and part.numel():
                    piece = cc.Segment(n, tuple(z.shape), 0, z.numel()).share(rank, world, 512)
                    server[start + piece.offset : start + piece.offset + part.numel()] = part.double()
            start += z.numel()
    return applied, true, residual, server, spoiled


@pytest.mark.parametrize("scale", [1.0, 1024.0])
@pytest.mark.parametrize(
    "reducer",
    [
        "ErrorFeedback(TopK(ratio=0.05))",
        "ErrorFeedback(TwoPhase(SignScale()))",
        "PowerSGD(rank=2)",
        "PowerSGD(rank=2, alternate=True, error='local')",
    ],
)
def test_an_overflow_on_one_rank_is_nan_everywhere_and_loses_nothing(
    three: Workers, reducer: str, scale: float
) -> None:
    results = three.run(overflows, reducer=reducer, scale=scale)
    true = sum(r[1] for r in results) / 3
    residual = sum(r[2] for r in results) / 3
    server = sum(r[3] for r in results)
    for applied, _, _, _, spoiled in results:
        assert torch.equal(applied, results[0][0])
        # One layer per bucket (the first bucket, of the last layer, also holds the next one's bias).
        assert spoiled["body.1.weight"]
        assert not spoiled["body.3.weight"]
        assert not spoiled["body.0.weight"]
        torch.testing.assert_close(applied + residual + server, true, rtol=1e-4, atol=1e-6)


class Branches(nn.Module):
    """The first branch is used where the input says so."""

    def __init__(self) -> None:
        super().__init__()
        self.body = models.mlp(3)

    def forward(self, x: torch.Tensor, first: bool, second: bool) -> torch.Tensor:
        y = self.body[2](x)
        if first:
            y = y + self.body[0](x)
        return y + self.body[1](x) if second else y


def unused(rank: int, world: int) -> Any:
    module, own = Branches(), Branches()
    model, attachment = models.wrap(
        module, cc.ErrorFeedback(cc.TopK(ratio=0.05)), megabytes=0.02, find_unused_parameters=True
    )
    applied = {n: torch.zeros_like(p) for n, p in module.named_parameters()}
    true = {n: torch.zeros_like(p) for n, p in module.named_parameters()}
    absent: list[bool] = []
    for step, x in enumerate(models.batches(rank, 6)):
        use = (step % 3 != 1, step % 2 == rank % 2)  # the first: no rank in steps 1 and 4; the second: some rank
        model.zero_grad()
        model(x, *use).pow(2).mean().backward()
        own.zero_grad()
        own(x, *use).pow(2).mean().backward()
        absent.append(module.body[0].weight.grad is None)
        for (n, p), q in zip(module.named_parameters(), own.parameters(), strict=True):
            applied[n] += 0 if p.grad is None else p.grad
            true[n] += 0 if q.grad is None else q.grad
    residual = models.slots(attachment)["residual"]
    return applied, true, residual, absent


def test_the_residual_of_a_parameter_that_no_rank_used_stays(two: Workers) -> None:
    results = two.run(unused)
    for applied, _, _, absent in results:
        assert absent == [False, True, False, False, True, False]
        for name in ("body.0.weight", "body.1.weight", "body.2.weight"):
            true = (results[0][1][name] + results[1][1][name]) / 2
            residual = (results[0][2][name] + results[1][2][name]) / 2
            torch.testing.assert_close(applied[name].view(-1) + residual, true.view(-1), rtol=1e-4, atol=1e-6)


def scales(rank: int, world: int) -> Any:
    """Scale changes between the steps leave the residual what it is."""
    xs = models.batches(rank, 4)
    found: list[torch.Tensor] = []
    for factors in ([1.0] * 4, [256.0, 256.0, 512.0, 64.0]):
        scaler = Scaler(1.0)
        model, attachment = models.wrap(models.mlp(), cc.ErrorFeedback(cc.TopK(ratio=0.05)), scaler=scaler)
        for x, factor in zip(xs, factors, strict=True):
            scaler.scale = factor
            model.zero_grad()
            (model(x).pow(2).mean() * factor).backward()
            found.append(models.grads(model) / factor)
        found.append(torch.cat([t.view(-1) for t in models.slots(attachment)["residual"].values()]))
    return found


def test_residuals_are_kept_unscaled(two: Workers) -> None:
    for found in two.run(scales):
        half = len(found) // 2
        for a, b in zip(found[:half], found[half:], strict=True):
            assert torch.equal(a, b)  # powers of two scale without rounding
