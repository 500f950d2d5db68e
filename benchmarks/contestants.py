"""What `benchmarks/exchange.py` compares: compcomm's reducers and PyTorch's own hooks, as DDP would call them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from replay import Bucket, Shapes
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook

import compcomm as cc
from compcomm.store import Store


@dataclass
class Contestant:
    """A communication hook with its state. ``payload``: bytes per step and rank, where they are known."""

    name: str
    hook: Callable[[Any, Any], Any]
    state: Any
    payload: int | None = None
    forget: Callable[[], None] | None = None
    """Drops hints of earlier steps, so that the next step is a cold one; None: it takes no hints."""
    one_bucket: bool = False


def peers(numel: int, world: int) -> list[Contestant]:
    """PyTorch's all-reduce hook (what DDP does without one), fp16 hook, and PowerSGD hook.

    PowerSGD gets one bucket: with several, it starts collectives in an order that differs between ranks on Gloo.
    """
    power = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=1, start_powerSGD_iter=2)
    return [
        Contestant("torch allreduce_hook", default_hooks.allreduce_hook, None, ring(4 * numel, world)),
        Contestant("torch fp16_compress_hook", default_hooks.fp16_compress_hook, None, ring(2 * numel, world)),
        Contestant("torch powerSGD_hook, rank 1, one bucket", powerSGD_hook.powerSGD_hook, power, one_bucket=True),
    ]


def ring(size: int, world: int) -> int:
    """Bytes that a rank sends for the ring all-reduce of ``size`` bytes."""
    return 2 * (size * (world - 1) // world)


@contextmanager
def compcomm(reducer: Any, model: Shapes, buckets: list[Bucket], world: int) -> Iterator[Contestant]:
    """A reducer behind the hook that `model.register_comm_hook(cc.DDPState(reducer), cc.ddp_hook)` would get."""
    state = cc.DDPState(reducer)
    attachment = state.bind(model)
    layouts = [cc.Layout.of((n, p.shape) for n, p in zip(b.names, b.parameters(), strict=True)) for b in buckets]
    settled = cc.settle(reducer, world)
    hints = {
        name
        for layout in layouts
        for segment in layout.segments
        for name, slot in settled.slots(segment, world).items()
        if slot.merge is cc.Merge.DROP
    }
    store: Store = attachment.store

    def forget() -> None:
        for layout in layouts:
            for name in hints:
                slab = store.bucket(name, layout)
                for segment in slab.layout.segments:
                    slab.view(segment).fill_(settled.slots(segment, world)[name].fill)

    try:
        payload = sum(cc.cost(reducer, layout, world, dist.get_rank()).sent for layout in layouts)
        yield Contestant(repr(reducer), cc.ddp_hook, state, payload, forget if hints else None)
    finally:
        attachment.detach()
