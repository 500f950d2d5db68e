"""A model whose gradients are what it is given, and the same gradients in the simulator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import compcomm as cc

from . import models

SHAPES: dict[str, tuple[int, ...]] = {"a": (64, 48), "b": (40, 65), "c": (64,), "d": (33, 40), "e": (3, 21, 20)}
Named = dict[str, Tensor]


class Given(nn.Module):
    """Uses the parameters that it gets a gradient for; four buckets of 0.004 MB. ``stored`` lays them in memory."""

    def __init__(
        self, dtypes: dict[str, torch.dtype] | None = None, shapes: dict[str, tuple[int, ...]] = SHAPES,
        stored: Callable[[Tensor], Tensor] = torch.Tensor.contiguous,
    ) -> None:  # fmt: skip
        super().__init__()
        for name, shape in shapes.items():
            made = torch.linspace(-0.5, 0.5, torch.Size(shape).numel()).view(shape)
            self.register_parameter(name, nn.Parameter(stored(made.to((dtypes or {}).get(name, torch.float32)))))

    def forward(self, gradients: Named) -> Tensor:
        parts = [(p * gradients[n].to(p.dtype)).sum().float() for n, p in self.named_parameters() if n in gradients]
        return torch.stack(parts).sum()


def hooked(module: nn.Module, reducer: str, **options: Any) -> tuple[Any, Any]:
    """A DDP model of small buckets with that reducer, stepped by an optimizer without momentum, and its attachment."""
    plain = torch.optim.SGD(module.parameters(), lr=0.1)
    return models.wrap(module, cc.parse(reducer), **{"megabytes": 0.004, "optimizer": plain, **options})


def gradients(rank: int, step: int, shapes: dict[str, tuple[int, ...]] = SHAPES) -> Named:
    """A rank's gradients, a function of (rank, step); a part of them is the same in every step."""
    moving, still = (torch.Generator().manual_seed(1000 * s + rank) for s in (step, 999))
    return {n: torch.randn(s, generator=moving) + torch.randn(s, generator=still) for n, s in shapes.items()}


def cut(attachment: Any) -> list[list[str]]:
    """The buckets that an attachment has seen, by the names in them."""
    return [[s.name for s in layout.segments] for layout in attachment.steps.scheduler.layouts]


def simulate(
    reducer: cc.Reducer, world: int, steps: list[list[Named]], buckets: list[list[str]], **options: Any
) -> tuple[list[Named], Any]:
    """Rank 0's means of every step, and the simulator: what is missing in a rank's gradients is zero."""
    simulator = cc.Simulator(reducer, world, **options)
    layouts = [cc.Layout.of((n, SHAPES[n]) for n in names) for names in buckets]
    means: list[Named] = []
    for given in steps:
        whole = [{n: g.get(n, torch.zeros(shape)) for n, shape in SHAPES.items()} for g in given]
        flats = [[torch.cat([g[s.name].view(-1) for s in ly.segments]) for ly in layouts] for g in whole]
        found = simulator.step([[cc.Bucket(f, ly) for f, ly in zip(fs, layouts, strict=True)] for fs in flats])
        means.append({n: m.clone() for bucket in found[0] for n, m in bucket.views().items()})
    return means, simulator
