"""The predicted time of a training step.

    step = forward + max(backward, when the last mean is there)

The latter is what the hook's own schedule makes of the buckets' arrivals, stages and collectives (``schedule``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..core.layout import Layout
from ..core.reducer import Reducer
from ..transports.dry_run import dense_bytes
from .cost import seconds, traffic
from .kernels import Kernels
from .link import Link
from .schedule import pipeline

FORWARD = 1 / 3
"""The forward pass's part of a step's computation: a backward pass multiplies twice where a forward pass does once."""


@dataclass(frozen=True)
class Prediction:
    """One method's step, in seconds and bytes per rank.

    ``seconds``: of the step. ``exposed``: what it waits for communication beyond its computation. ``kernels`` and
    ``wire``: coding and decoding, and collectives, whether hidden or not. ``sent``: bytes per rank. ``dense``: those of
    an fp32 all-reduce.
    """

    method: str
    seconds: float
    exposed: float
    kernels: float
    wire: float
    sent: int
    dense: int

    @property
    def ratio(self) -> float:
        """Dense bytes over sent bytes."""
        return self.dense / self.sent if self.sent else float("inf")

    def as_dict(self) -> dict[str, Any]:
        """All fields and the ratio, ready for JSON."""
        return {**vars(self), "ratio": self.ratio if self.sent else None}


def predict(
    reducer: Reducer | None,
    layouts: Sequence[Layout],
    world: int,
    link: Link,
    kernels: Kernels,
    compute: float,
    *,
    forward: float = FORWARD,
    arrivals: Sequence[float] | None = None,
    dtype: torch.dtype = torch.float32,
    rows: bool = False,
    waits: bool = False,
) -> Prediction:
    """The step of a settled reducer (None: DDP without a hook) on buckets in the order of the backward pass.

    Args:
        compute: seconds of forward and backward pass without communication.
        forward: the forward pass's part of it.
        arrivals: when each bucket is full, in seconds after the backward pass began; None: evenly, the last one at
            its end.
        dtype: of the gradients. Kernels count as they were measured, in fp32.
        rows: buckets are made of one row per rank, which it wants alone.
        waits: the host waits for every mean before its backward pass goes on, as ``fully_shard`` does on the CPU.
    """
    buckets = tuple(layouts)
    planned = traffic(reducer, buckets, world, dtype, rows)
    stages = [[kernels.stretch * t for t in kernels.seconds(reducer, layout, world, rows)] for layout in buckets]
    wires = [[kernels.stretch * seconds(p, world, link) for p in bucket] for bucket in planned]
    numel = sum(layout.numel if rows else sum(s.numel for s in layout.segments) for layout in buckets)
    sent = sum(p.sent for bucket in planned for p in bucket)
    if world == 1:
        stages, wires = [[0.0] for _ in buckets], [[] for _ in buckets]
    found = timed(reducer, stages, wires, compute, forward, sent, dense_bytes(numel, world, rows), arrivals, waits)
    return replace(found, method="fully_shard") if rows and reducer is None else found


def timed(
    reducer: Reducer | None,
    stages: Sequence[Sequence[float]],
    wires: Sequence[Sequence[float]],
    compute: float,
    forward: float,
    sent: int,
    dense: int,
    arrivals: Sequence[float] | None = None,
    waits: bool = False,
) -> Prediction:
    """What the hook's schedule makes of every bucket's stages and of the collectives between them, in seconds; the rest
    as ``predict`` and ``Prediction`` have it."""
    backward = compute * (1 - forward)
    when = arrivals or [backward * (b + 1) / len(stages) for b in range(len(stages))]
    native = reducer is None or reducer.traits.in_dtype > 1 << 30
    if waits:
        done = backward + sum(map(sum, stages)) + sum(map(sum, wires))
    else:
        done = max(backward, pipeline(when, stages, wires, native, threaded=reducer is not None)[-1])
    return Prediction(
        method="DDP" if reducer is None else repr(reducer),
        seconds=compute * forward + done,
        exposed=done - backward,
        kernels=sum(map(sum, stages)),
        wire=sum(map(sum, wires)),
        sent=sent,
        dense=dense,
    )
