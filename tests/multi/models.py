"""Small models and training loops for real processes."""

from __future__ import annotations

import re
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as DDP

import compcomm as cc
from compcomm.plan.shapes import resnet50
from tests.patience import patience


def mlp(layers: int = 4, width: int = 64, seed: int = 0) -> nn.Sequential:
    """Equal on all ranks."""
    torch.manual_seed(seed)
    return nn.Sequential(*[nn.Linear(width, width) for _ in range(layers)])


class Shapes(nn.Module):
    """Parameters of given shapes whose gradients cost next to nothing: parameter i's is (x + i) everywhere, tilted."""

    def __init__(self, shapes: list[tuple[str, tuple[int, ...]]]) -> None:
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.full(shape, 0.01)) for _, shape in shapes])
        self.tilts = [torch.linspace(-1, 1, shape[0]).view(-1, *[1] * (len(shape) - 1)) for _, shape in shapes]

    def forward(self, x: Tensor) -> Tensor:
        parts = [(w * (t * x[i % len(x)])).sum() for i, (w, t) in enumerate(zip(self.weights, self.tilts, strict=True))]
        return torch.stack(parts).sum()


def resnet(width: int) -> Shapes:
    return Shapes(resnet50(width, 1000 * width // 64))


def wrap(module: nn.Module, reducer: Any = None, *, megabytes: float = 0.05, **options: Any) -> tuple[DDP, Any]:
    """A DDP model with many buckets, and its attachment (None without a reducer)."""
    names = ("find_unused_parameters", "gradient_as_bucket_view", "static_graph")
    ddp = DDP(module, bucket_cap_mb=megabytes, **{n: options.pop(n) for n in names if n in options})
    timeout = options.pop("timeout", patience(20))
    return ddp, None if reducer is None else cc.attach(ddp, reducer, timeout=timeout, **options)


def unbound(module: nn.Module, reducer: Any, *, megabytes: float = 0.05, **options: Any) -> tuple[DDP, cc.DDPState]:
    """A DDP model with the hook in PyTorch's own form, which knows no names yet."""
    ddp, state = DDP(module, bucket_cap_mb=megabytes), cc.DDPState(reducer, **{"timeout": patience(20), **options})
    ddp.register_comm_hook(state, cc.ddp_hook)
    return ddp, state


def batches(rank: int, steps: int, width: int = 64, start: int = 0) -> list[Tensor]:
    """A rank's inputs, a function of (rank, step)."""
    return [torch.randn(8, width, generator=torch.Generator().manual_seed(1000 * s + rank)) for s in
            range(start, start + steps)]  # fmt: skip


def train(model: nn.Module, inputs: list[Tensor], lr: float = 0.1) -> Tensor:
    """Plain SGD on a quadratic loss; the parameters as one vector."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for x in inputs:
        optimizer.zero_grad()
        model(x).pow(2).mean().backward()
        optimizer.step()
    return flat(model)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1).float() for p in model.parameters()])


def grads(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.reshape(-1).double() for p in model.parameters() if p.grad is not None])


def own(state: Any) -> Any:
    """What lies under the one key of an exact state dict: this rank's."""
    (content,) = state.values()
    return content


def slots(attachment: Any) -> Any:
    """This rank's memory, ``{slot: {parameter: tensor}}``."""
    return own(attachment.state_dict())["slots"]


def caught(call: Any) -> tuple[str, str, str]:
    """(type, message, cause) of what a call raises; a test wants it raised."""
    try:
        with warnings.catch_warnings():
            call()
    except Exception as error:
        return type(error).__name__, str(error), type(error.__cause__).__name__
    return "nothing", "", ""


def said(told: tuple[str, str, str], pattern: str) -> None:
    """Whether an error that was caught says this."""
    assert re.search(pattern, told[1]), f"{told[0]}: {told[1]!r} does not say {pattern!r}"
