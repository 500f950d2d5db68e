"""The predicted time of a training step: the hook's own schedule over the buckets, played through with seconds.

The schedule is that of ``compcomm.hooks.scheduler``: one thread codes buckets in the order in which the backward pass
brings them; when bucket b has started its first collective, every older flow is waited for and taken to its next one;
after the last bucket this goes on until all are delivered. One wire carries one collective at a time, in the order in
which they start.

    step = forward + max(backward, when the last mean is there)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..bucket import Layout
from ..reducer import Reducer
from .cost import seconds, traffic
from .kernels import Kernels
from .link import Link

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
) -> Prediction:
    """The step of a settled reducer (None: DDP without a hook) on buckets in the order of the backward pass.

    Args:
        compute: seconds of forward and backward pass without communication.
        forward: the forward pass's part of it.
        arrivals: when each bucket is full, in seconds after the backward pass began; None: evenly, the last one at
            its end.
    """
    buckets = tuple(layouts)
    backward = compute * (1 - forward)
    when = arrivals or [backward * (b + 1) / len(buckets) for b in range(len(buckets))]
    planned = traffic(reducer, buckets, world)
    stages = [kernels.seconds(reducer, layout, world) for layout in buckets]
    wires = [[seconds(p, world, link) for p in bucket] for bucket in planned]
    native = reducer is None or reducer.native(1 << 30)
    done = max(backward, pipeline(when, stages, wires, native, threaded=reducer is not None)[-1] if world > 1 else 0.0)
    dense = 2 * (4 * sum(s.numel for layout in buckets for s in layout.segments) * (world - 1) // world)
    return Prediction(
        method="DDP" if reducer is None else repr(reducer),
        seconds=compute * forward + done,
        exposed=done - backward,
        kernels=sum(map(sum, stages)),
        wire=sum(map(sum, wires)),
        sent=sum(p.sent for bucket in planned for p in bucket),
        dense=dense,
    )


def pipeline(
    arrivals: Sequence[float],
    stages: Sequence[Sequence[float]],
    wires: Sequence[Sequence[float]],
    native: bool = False,
    threaded: bool = True,
) -> list[float]:
    """When each bucket's mean is there, by the schedule above; the largest comes last.

    ``stages[b]``: seconds of every stage of bucket b, one more than ``wires[b]``, the seconds of its collectives.
    ``native``: a plain sum, which the next bucket need not wait for. ``threaded``: False where no thread of ours takes
    part, as in DDP alone.

    Two buckets, the second arriving while the first is on the wire: coded behind it, waiting for the wire, decoded.

    >>> pipeline([0.0, 1.0], [[1.0, 0.5], [1.0, 0.5]], [[4.0], [4.0]])
    [5.5, 9.5]
    """
    clock = free = 0.0
    ends, place, done = [0.0] * len(arrivals), [0] * len(arrivals), [-1.0] * len(arrivals)

    def advance(b: int) -> None:
        nonlocal clock, free
        if place[b]:
            clock = max(clock, ends[b])
        clock += stages[b][place[b]]
        if place[b] == len(wires[b]):
            done[b] = clock
            return
        free = max(clock, free) + wires[b][place[b]]
        ends[b] = free
        place[b] += 1

    for b, arrival in enumerate(arrivals):
        clock = max(clock, arrival)
        older = [f for f in range(b) if done[f] < 0]
        advance(b)
        for f in older:
            if threaded and (not native or ends[f] <= clock):
                advance(f)
    while any(d < 0 for d in done):
        for b in range(len(arrivals)):
            if done[b] < 0:
                advance(b)
    return sorted(done)
