"""The compressed optimizers as the tests of processes use them: what they share, and a table of what differs.

A new export of ``compcomm.optim`` needs one line in ``KINDS``, and its page in ``due``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as DDP

import compcomm as cc
from tests.optim.saved import ours, tensors
from tests.reference import onebit_adam, onebit_lamb, zero_one_adam

from .given import SHAPES, Named, gradients

LR = 0.01
SIZES = [int(np.prod(s)) for s in SHAPES.values()]
NUMEL = sum(SIZES)
COMPRESSORS = {
    "sign": "SignScale()",
    "published": "SignScale(scale='l2')",
    "4 bits": "QSGD(bits=4, rounding='nearest')",
    "random": "QSGD(bits=4)",
    "top-k": "TopK(ratio=0.1)",
    "two-phase top-k": "TwoPhase(TopK(ratio=0.1))",
    "nothing lost": "Exact()",
}


class Kind(NamedTuple):
    """How a test of ``steps`` steps makes one. ``ends``: its last steps' loss in a training script, as a part of the
    first ones'."""

    freeze: int
    steps: int
    options: dict[str, Any]
    script: dict[str, Any]
    group: dict[str, Any]
    script_steps: int
    ends: float
    scheduled: bool = False
    """Whether its training script lets the rate fall in every case."""
    tilt: float = 1.0
    """Parameter i's gradients are so many times as large as those of the one before."""


SCHEDULES = {"var_update_scaler": 2, "local_step_scaler": 3, "local_step_clipper": 4}
KINDS = {
    "OneBitAdam": Kind(
        4, 12, {}, {"lr": 0.003, "betas": (0.9, 0.95), "freeze": 20}, {"lr": 0.005}, 60, 0.45
    ),
    "OneBitLamb": Kind(
        4, 12, {"betas": (0.9, 0.95)}, {"lr": 0.05, "freeze": 8}, {"lr": 0.005, "adapt": False}, 40, 0.5, True,
        tilt=10.0
    ),
    "ZeroOneAdam": Kind(
        6, 18, SCHEDULES,
        {"lr": 2e-3, "freeze": 20, "var_update_scaler": 6, "local_step_scaler": 10}, {"lr": 0.001}, 59, 0.4
    ),
}  # fmt: skip
MEETINGS = [7, 8, 9, 10, 12, 14, 18]
"""The steps after the freeze in which 0/1 Adam's ranks synchronise; the others' do in every step."""


def given(kind: str, rank: int, step: int) -> Named:
    """A rank's gradients."""
    return {n: g * KINDS[kind].tilt ** (i - 2) for i, (n, g) in enumerate(gradients(rank, step).items())}


def joined(parts: Any) -> Tensor:
    return torch.cat([t.reshape(-1) for t in parts])


def make(kind: str, module: nn.Module, ddp: bool = True, **options: Any) -> tuple[nn.Module, Any]:
    """A model and its optimizer; ``compressor`` and ``warmup`` as text."""
    told = {k: cc.parse(v) if isinstance(v, str) and k != "freeze" else v for k, v in options.items()}
    names = ("find_unused_parameters", "gradient_as_bucket_view")
    wrapping = {n: told.pop(n) for n in names if n in told}
    model = DDP(module, bucket_cap_mb=0.004, **wrapping) if ddp else module
    own = {"lr": LR, "freeze": KINDS[kind].freeze, "timeout": 20, **KINDS[kind].options, **told}
    return model, getattr(cc.optim, kind)(model, **own)


def advance(kind: str, model: nn.Module, own: Any, rank: int, steps: range) -> None:
    for step in steps:
        own.zero_grad()
        model(given(kind, rank, step)).backward()
        own.step()


def content(own: Any) -> Any:
    """This rank's part of the state."""
    return ours(own.state_dict())


def apart(own: Any) -> int:
    """Steps since the ranks met, which only 0/1 Adam's leave out."""
    return getattr(own, "local_steps", 0)


def moment(own: Any) -> Tensor:
    """The momentum: everybody's, or, between two synchronisations, this rank's own."""
    if apart(own):
        return joined(tensors(own.state_dict(), SHAPES)["local exp_avg"].values())
    return joined(e["exp_avg"] for e in own.state_dict()["state"].values())


def ratios(own: Any) -> tuple[list[float], list[float]]:
    """1-bit LAMB's c and phi, which others have not."""
    return (
        (list(own.coefficients.values()), content(own)["trust"]["factor"]) if hasattr(own, "coefficients") else ([], [])
    )


def scales(state: Any) -> list[float]:
    """What each parameter's momentum was multiplied by before it was sent."""
    found: list[float] = ours(state).get("scaling", [1.0] * len(SIZES))
    return found


def stretched(numbers: list[float]) -> Tensor:
    """A number of each parameter, for each of its elements."""
    return torch.cat([torch.full((size,), x) for size, x in zip(SIZES, numbers, strict=True)])


def residuals(merged: Any) -> Tensor:
    """What is still to be sent, of every parameter."""
    slots = tensors(merged, SHAPES)["residual"]
    return joined(slots.get(n, torch.zeros(s)) for n, s in SHAPES.items())


Step = tuple[list[Tensor], list[Tensor], tuple[list[float], list[float]]]


def due(kind: str, start: Tensor, world: int, reducer: Any) -> list[Step]:
    """The page, whose compressed mean is the simulator's: every rank's x and m, and the ratios, step for step."""

    def named(vector: np.ndarray) -> Named:
        parts = torch.from_numpy(vector).split(SIZES)
        return {n: part.view(SHAPES[n]) for n, part in zip(SHAPES, parts, strict=True)}

    def memory() -> Any:
        simulator = cc.Simulator(reducer, world)
        return lambda inputs: joined(simulator.mean([named(m) for m in inputs])[0].values()).numpy()

    told, x = KINDS[kind], start.numpy()
    own: Any
    if kind == "OneBitAdam":
        own = onebit_adam.OneBitAdam(x, SIZES, memory(), told.freeze, LR, decay=0.1)
    elif kind == "OneBitLamb":
        own = onebit_lamb.OneBitLamb(x, SIZES, memory(), told.freeze, LR, told.options["betas"], decay=0.1)
    else:
        own = zero_one_adam.ZeroOneAdam(x, SIZES, world, memory, told.freeze, LR, decay=0.1, **SCHEDULES)
    found: list[Step] = []
    for step in range(told.steps):
        own.step([joined(given(kind, rank, step).values()).numpy() for rank in range(world)])
        xs, ms = ([t] * world if isinstance(t, np.ndarray) else t for t in (own.x, own.m))
        copies = ([torch.from_numpy(t.copy()) for t in each] for each in (xs, ms))
        found.append((*copies, (list(getattr(own, "c", [])), list(getattr(own, "phi", [])))))  # type: ignore[arg-type]
    return found
