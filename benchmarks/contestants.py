"""What `benchmarks/exchange.py` compares: compcomm's reducers and PyTorch's own hooks, as DDP would call them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import plain_powersgd
import torch
import torch.distributed as dist
from replay import Bucket, Shapes
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook

from compcomm import Bucket as Span
from compcomm import Layout, Merge, cost
from compcomm.hosts.ddp import DDPState


@dataclass
class Contestant:
    """A communication hook with its state. ``payload``: bytes per step and rank, where they are known."""

    name: str
    hook: Callable[[Any, Any], Any]
    state: Any
    payload: int | None = None
    forget: Callable[[], None] | None = None
    """Drops hints of earlier steps, so that the next step is a cold one; None: it takes no hints."""
    finish: Callable[[], None] | None = None
    """Called after the last bucket, as autograd's callback is: returns when the step is over."""
    one_bucket: bool = False


def peers(numel: int, world: int) -> list[Contestant]:
    """PyTorch's all-reduce hook (what DDP does without one), fp16 hook, and PowerSGD hook; and PowerSGD from operators.

    PyTorch's PowerSGD gets one bucket: with several, it starts collectives in an order that differs between ranks on
    Gloo. The plain one gets one too, so that it can batch matrices of one shape.
    """
    hook = powerSGD_hook.powerSGD_hook
    powers = [
        (r, powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=r, start_powerSGD_iter=2)) for r in (1, 4)
    ]
    return [
        Contestant("torch allreduce_hook", default_hooks.allreduce_hook, None, ring(4 * numel, world)),
        Contestant("torch fp16_compress_hook", default_hooks.fp16_compress_hook, None, ring(2 * numel, world)),
        *(Contestant(f"torch powerSGD_hook, rank {r}, one bucket", hook, s, one_bucket=True) for r, s in powers),
        Contestant(
            "plain PowerSGD with bmm, rank 4, one bucket", plain_powersgd.hook, plain_powersgd.Plain(4), one_bucket=True
        ),
    ]


def ring(size: int, world: int) -> int:
    """Bytes that a rank sends for the ring all-reduce of ``size`` bytes."""
    return 2 * (size * (world - 1) // world)


@contextmanager
def compcomm(reducer: Any, model: Shapes, buckets: list[Bucket], world: int) -> Iterator[Contestant]:
    """A reducer and its scheduler, called as `cc.ddp_hook` calls them for real buckets of DDP."""
    state = DDPState(reducer, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    state.bind(model)
    attachment = state.open(torch.device("cpu"))
    layouts = [Layout.of((n, p.shape) for n, p in zip(b.names, b.parameters(), strict=True)) for b in buckets]
    slots = [attachment.reducer.slots(s, world) for layout in layouts for s in layout.segments]
    hints = {name: slot.fill for found in slots for name, slot in found.items() if slot.merge is Merge.DROP}

    def hook(_: None, bucket: Bucket) -> torch.futures.Future[torch.Tensor]:
        if bucket.index() == 0:
            attachment.begin_step()
        return attachment.submit(Span(bucket.flat, layouts[bucket.index()]), last=bucket.is_last())

    def forget() -> None:
        kept = attachment.state_dict()
        (own,) = kept.values()  # this rank's
        for name, fill in hints.items():
            for hint in own["slots"][name].values():
                hint.fill_(fill)
        attachment.load_state_dict(kept)

    try:
        payload = sum(cost(reducer, layout, world, dist.get_rank()).sent for layout in layouts)
        yield Contestant(repr(reducer), hook, None, payload, forget if hints else None, finish=attachment.end_step)
    finally:
        attachment.detach()
