"""The optimizers that are compared, and the phases of a run in which they send different amounts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from math import log2
from typing import Any, NamedTuple

import torch
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

import compcomm as cc

BF16 = cc.Cast(torch.bfloat16)
COMPRESSOR = "SignScale(block=1024, dense_below=0)"
PUBLISHED = "Unproven(SignScale(scale='l2', block=1024, dense_below=0))"
"""The scale of 1-bit Adam's published code: the norm of a block is kept, and so is the length of the steps."""
ADAM, HALF, LAMB = "Adam", "Adam, fp16 hook", "LAMB"
"""The yardsticks: of losses, of bytes, and of 1-bit LAMB's losses."""


@dataclass(frozen=True)
class Setting:
    """What all methods of a task share."""

    rate: float
    lamb_rate: float
    betas: tuple[float, float]
    decay: float


SETTINGS = {
    "digits": Setting(1e-3, 0.01, (0.9, 0.99), 0.0),
    "charlm": Setting(3e-3, 0.01, (0.9, 0.99), 0.01),
}


class Phase(NamedTuple):
    """Steps [start, stop) of a run; ranks exchange once in ``interval`` of them."""

    name: str
    start: int
    stop: int
    interval: int = 1


@dataclass(frozen=True)
class Method:
    """``make(model, seed)`` gives the optimizer of a DDP model, with whatever hook belongs to it."""

    name: str
    text: str
    make: Callable[[DistributedDataParallel, int], torch.optim.Optimizer]
    phases: tuple[Phase, ...]
    beside: str = ADAM
    """The method that its losses are held against."""
    freeze: int | None = None
    """The step after which the variance is to be frozen."""


def methods(
    setting: Setting, steps: int, schedule: Callable[[int], float], compressor: cc.Compressor | cc.Reducer, local: int
) -> list[Method]:
    """All of them for a run of ``steps``; ``schedule(step)`` is the factor of the learning rate. ``local``: the largest
    number of steps between two exchanges of 0/1 Adam.

    Raises:
        ValueError: ``local`` is no power of two, so that intervals do not grow into it by doubling.
    """
    if local < 1 or local & (local - 1):
        raise ValueError(f"--local-steps {local}: give a power of two.")
    early, late = (max(round(share * steps), risen(schedule)) for share in (0.15, 0.2))
    doubling = max(1, round(0.05 * steps))  # steps until the interval doubles
    shared = {"betas": setting.betas, "weight_decay": setting.decay}
    coded = {**shared, "compressor": compressor}
    signs = {**coded, "warmup": BF16, "bias_correction": True}
    l2 = {**signs, "compressor": cc.parse(PUBLISHED)}
    whole = (Phase("all", 0, steps),)
    two = (Phase("warm-up", 0, early), Phase("compressed", early, steps))

    def adam(model: DistributedDataParallel, seed: int) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), setting.rate, fused=True, **shared)

    def half(model: DistributedDataParallel, seed: int) -> torch.optim.Optimizer:
        model.register_comm_hook(None, default_hooks.fp16_compress_hook)
        return adam(model, seed)

    def ours(call: str, rate: float, **more: Any) -> dict[str, Any]:
        def make(model: DistributedDataParallel, seed: int) -> torch.optim.Optimizer:
            return getattr(cc.optim, call)(model, rate, seed=seed, **more)

        return {"text": f"{call}({', '.join(f'{k}={v!r}' for k, v in more.items())})", "make": make}

    rare = {"freeze": late, "local_step_scaler": doubling, "local_step_clipper": local}
    return [
        Method(ADAM, "AdamW(fused=True), DDP's fp32 all-reduce", adam, whole),
        Method(HALF, "AdamW(fused=True), fp16_compress_hook", half, whole),
        Method("1-bit Adam", **ours("OneBitAdam", setting.rate, freeze=early, **signs), phases=two, freeze=early),
        Method(
            "1-bit Adam, L2 scale", **ours("OneBitAdam", setting.rate, freeze=early, **l2), phases=two, freeze=early,
        ),
        Method(
            "0/1 Adam", **ours("ZeroOneAdam", setting.rate, **rare, **signs),
            phases=rising(steps, late, doubling, local), freeze=late,
        ),
        Method(
            "0/1 Adam, L2 scale", **ours("ZeroOneAdam", setting.rate, **rare, **l2),
            phases=rising(steps, late, doubling, local), freeze=late,
        ),
        Method(LAMB, **ours("OneBitLamb", setting.lamb_rate, freeze=10 * steps, **coded), phases=whole, beside=LAMB),
        Method(
            "1-bit LAMB", **ours("OneBitLamb", setting.lamb_rate, freeze=early, warmup=BF16, **coded), phases=two,
            beside=LAMB, freeze=early,
        ),
    ]  # fmt: skip


def risen(schedule: Callable[[int], float]) -> int:
    """The first step that may end a warm-up: its learning rate is no larger than that of the step before."""
    return next(step + 1 for step in count(1) if schedule(step) <= schedule(step - 1))


def rising(steps: int, freeze: int, doubling: int, local: int) -> tuple[Phase, ...]:
    """0/1 Adam's: until the freeze; while the interval grows; and while it is ``local``, for a multiple of ``local``
    steps, so that the number of exchanges in it is whole, however they lie."""
    full = freeze + doubling * round(log2(local))
    last = steps - max(0, steps - full) // local * local
    found = [Phase("variance", 0, freeze), Phase("interval grows", freeze, last), Phase("last", last, steps, local)]
    return tuple(p for p in found if p.stop > p.start)


def chosen(all_of_them: list[Method], names: list[str] | None) -> list[Method]:
    """Those of the given names.

    Raises:
        ValueError: there is no such method.
    """
    known = {m.name: m for m in all_of_them}
    if names and (strange := [n for n in names if n not in known]):
        raise ValueError(f"--method {strange[0]}: no such method; there are {', '.join(known)}.")
    return [m for m in all_of_them if not names or m.name in names]


def setting(task: str, rate: float | None, lamb_rate: float | None) -> Setting:
    """A task's, with other learning rates where they are given."""
    found = SETTINGS[task]
    return replace(found, rate=rate or found.rate, lamb_rate=lamb_rate or found.lamb_rate)
