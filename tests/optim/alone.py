"""One rank's optimizer over a small module, whose gradients are a function of the step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import compcomm as cc
from tests.multi.compressed import KINDS

from .saved import ours

SHAPES = {"a": (16, 12), "b": (7,), "c": (3, 5, 4)}


def module(dtype: torch.dtype = torch.float32) -> nn.Module:
    made = nn.Module()
    for name, shape in SHAPES.items():
        numel = int(np.prod(shape))
        made.register_parameter(name, nn.Parameter(torch.linspace(-1, 1, numel).view(shape).to(dtype)))
    return made


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    return list(module(dtype).parameters())


def make(kind: str, params: Any, **options: Any) -> Any:
    """The optimizer of that name, with the schedules of the table."""
    told = KINDS[kind]
    return getattr(cc.optim, kind)(params, **{"lr": 0.01, "freeze": told.freeze, **told.options, **options})


def gradients(step: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(step)
    return [torch.randn(shape, generator=draw) for shape in SHAPES.values()]


def give(params: Any, given: Sequence[Tensor | None]) -> None:
    for p, g in zip(params, given, strict=True):
        p.grad = None if g is None else g.to(p.dtype)


def overflow(optimizer: Any, params: Any) -> torch.amp.GradScaler:
    """A step under a GradScaler whose gradients have an infinity; the scaler, afterwards."""
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    give(params, gradients(99))
    params[1].grad[0] = float("inf")
    scaler.scale(torch.ones(()))
    scaler.step(optimizer)
    scaler.update()
    return scaler


def drive(optimizer: Any, params: Sequence[Tensor], steps: range, factor: float = 1.0) -> None:
    for step in steps:
        give(params, [factor * g for g in gradients(step)])
        optimizer.step()


def flat(params: Any) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in params])


def restore(params: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for p, x in zip(params, values, strict=True):
            p.copy_(x)


def content(own: Any) -> dict[str, Any]:
    """What a checkpoint has of ours: numbers alone."""
    return ours(own.state_dict())


def moments(own: Any, name: str) -> Tensor:
    return torch.cat([e[name].reshape(-1) for e in own.state_dict()["state"].values()])
