"""Running a reducer in the simulator on named gradients, cut into buckets at will."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache

import torch
from torch import Tensor

from ..core.layout import Bucket, Layout
from ..core.reducer import Reducer
from ..routes.choose import settle
from ..transports.dry_run import plan
from ..transports.simulator import Simulator
from .inputs import MODEL, gradient, model_layout

Named = dict[str, Tensor]
Cut = Callable[[int], Sequence[Layout]]
WORLDS = (1, 2, 3, 5)


def whole(step: int) -> Sequence[Layout]:
    """One bucket."""
    return (model_layout(),)


def backwards(step: int) -> Sequence[Layout]:
    """Three buckets, last parameter first, as a backward pass delivers them."""
    return _three()


@cache
def _three() -> Sequence[Layout]:
    names = tuple(n for n, _ in reversed(MODEL))
    return tuple(model_layout(part) for part in (names[:2], names[2:5], names[5:]))


def rebuilt(step: int) -> Sequence[Layout]:
    """One bucket in forward order at first, others from then on: what DDP does after its first step."""
    return whole(step) if step == 0 else backwards(step)


def pack(named: Named, layout: Layout) -> Bucket:
    """The parameters of a layout as one bucket."""
    flat = [named[s.name].reshape(-1)[s.offset : s.offset + s.numel] for s in layout.segments]
    return Bucket(torch.cat(flat), layout)


def step(simulator: Simulator, gradients: Sequence[Named], layouts: Sequence[Layout]) -> list[Named]:
    """One step: every rank's named gradients in, every rank's named means out."""
    means = simulator.step([[pack(g, layout) for layout in layouts] for g in gradients])
    return [{n: t for bucket in rank for n, t in bucket.views().items()} for rank in means]


def gradients(world: int, at: int) -> list[Named]:
    """Every rank's gradients of a step."""
    return [gradient(rank, at) for rank in range(world)]


@lru_cache(maxsize=16)
def run(reducer: Reducer, world: int, steps: int, cut: Cut = whole) -> list[list[Named]]:
    """``[step][rank]{name: mean}`` from the first step on, to read: several checks look at the same run."""
    simulator = Simulator(reducer, world, seed=17)
    return [step(simulator, gradients(world, t), cut(t)) for t in range(steps)]


def slot(simulator: Simulator, rank: int, name: str) -> Named:
    """A slot's tensors on one rank, by parameter."""
    return simulator.stores[rank].state_dict().get(name, {})


@lru_cache(maxsize=64)
def roundoff(r: Reducer, world: int) -> float:
    """The unit roundoff of sums whose order depends on how a buffer is cut: 0 if payloads are decoded in rank order."""
    found = [0.0]
    for at in (0, 1 << 30):
        for p in plan(settle(r, world), model_layout(), world, 0, at):
            if p.kind in ("AllReduce", "ReduceScatter") and getattr(torch, p.dtype).is_floating_point:
                found.append(torch.finfo(getattr(torch, p.dtype)).eps / 2)
    return max(found)
