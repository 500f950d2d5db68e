"""Small models that ``fully_shard`` takes, on real processes: with uneven dimensions, and what their means must be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import fsdp

import compcomm as cc
from tests.patience import patience

EF4 = "ErrorFeedback(QSGD(bits=4,rounding='nearest',block=16,dense_below=1))"
WORDS, WIDTH = 13, 10
fully_shard: Any = fsdp.fully_shard


class Block(nn.Module):
    """Neither dimension can be divided by 2 or 4."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width + 3)
        self.down = nn.Linear(2 * width + 3, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Affine(nn.Linear):
    """Its output is no view, which a unit must not return."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).clone()


class Net(nn.Module):
    """Words in, logits and two numbers out; ``few`` has fewer rows than there are ranks."""

    def __init__(self, blocks: int = 2) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.few = Affine(WIDTH, 3)
        self.head = Affine(WIDTH, WORDS)

    def forward(self, x: Tensor) -> Tensor:
        y = self.words(x)
        for block in self.blocks:
            y = block(y)
        return torch.cat([self.head(y), self.few(y)], -1)


def net(blocks: int = 2) -> Net:
    """Equal on all ranks."""
    torch.manual_seed(0)
    return Net(blocks)


def shard(model: Any, **options: Any) -> Any:
    """Each block a unit, and the rest one."""
    for block in model.blocks:
        fully_shard(block, **options)
    return fully_shard(model, **options)


def attach(model: Any, reducer: Any, **options: Any) -> Any:
    made = cc.parse(reducer) if isinstance(reducer, str) else reducer
    options.setdefault("timeout", patience(20))
    return cc.attach(model, made, **options)


def given(rank: int, step: int) -> tuple[Tensor, Tensor]:
    """A rank's words and what is to come of them, a function of (rank, step)."""
    x = torch.randint(0, WORDS, (4, 6), generator=torch.Generator().manual_seed(1000 * step + rank))
    return x, (3 * x + 1) % WORDS


def loss_of(model: Callable[[Tensor], Tensor], rank: int, step: int) -> Tensor:
    x, y = given(rank, step)
    return nn.functional.cross_entropy(model(x).float().flatten(0, 1), y.flatten())


def train(model: Any, rank: int, steps: Sequence[int], optimizer: Any = None) -> tuple[list[float], Any]:
    """AdamW; the losses, and the optimizer."""
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses: list[float] = []
    for step in steps:
        loss = loss_of(model, rank, step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses, optimizer


def whole(model: nn.Module) -> dict[str, Tensor]:
    """All parameters. Collective."""
    return {n: _full(p.detach()).clone() for n, p in model.named_parameters()}


def grads(model: nn.Module) -> dict[str, Tensor]:
    """All gradients, which are taken off. Collective."""
    found: dict[str, Tensor] = {}
    for n, p in model.named_parameters():
        if p.grad is not None:
            found[n] = _full(p.grad).clone()
            p.grad = None
    return found


def _full(t: Any) -> Tensor:
    return t.full_tensor() if hasattr(t, "full_tensor") else t


def mean_gradients(world: int, step: int, model: nn.Module | None = None) -> dict[str, Tensor]:
    """What the mean over the ranks should be, of a model that nobody shards."""
    model = net() if model is None else model
    for rank in range(world):
        (loss_of(model, rank, step) / world).backward()
    return grads(model)


def summed(found: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for one in found:
        for n, t in one.items():
            total[n] = total[n] + t if n in total else t.clone()
    return total


def gap(means: Sequence[dict[str, Tensor]], hook: Any, due: Sequence[dict[str, Tensor]]) -> float:
    """|sum of means + mean residual - sum of due| / |sum of due|. Collective."""
    owed = hook.portable_state_dict()["slots"].get("residual", {})
    want = summed(due)
    got = summed([*means, {n: _placed(t, want[n]) for n, t in owed.items()}])
    assert got.keys() == want.keys()
    off = sum(float((got[n].double() - want[n].double()).square().sum()) for n in want)
    return (off / sum(float(t.double().square().sum()) for t in want.values())) ** 0.5


def _placed(t: Tensor, like: Tensor) -> Tensor:
    """Of a parameter that is cut along its second dimension there are the shards, one after the other."""
    return t if t.shape == like.shape else torch.cat(t.chunk(dist.get_world_size()), 1)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def row_bytes(model: Any, world: int, nbytes: int = 4) -> float:
    """What stock FSDP sends of the gradients per rank and pass: rows are padded, a parameter each."""
    padded = sum(-(-p.shape[0] // world) * world * p[:1].numel() for p in net(len(model.blocks)).parameters())
    return padded * nbytes * (world - 1) / world
