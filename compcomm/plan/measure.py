"""The link between ranks, measured through the transport that will carry the gradients."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.collectives import (
    AllGather,
    AllReduce,
    AllReduceMax,
    AllToAll,
    Collective,
    ReduceScatter,
)
from ..core.transport import Transport
from ..transports.dry_run import Planned
from .cost import steps
from .link import Link, Speed

_SMALL, _MIDDLE, _LARGEST = 1 << 12, 1 << 18, 1 << 25
"""Bytes that a rank sends: for the latency; to see how large the large ones may be; and the most."""
_LONG = 0.06
"""Seconds that the first of the two large collectives should take: well beyond what a rested link lets through at once.
The second is twice as large, and the difference is the rate."""
_REPEATS = 5


def measure(transport: Transport, rows: bool = False) -> Link:
    """The latency of each kind of collective from a small one, its rate from the difference between two large ones.

    Collective: every rank calls it, between two steps; all get the same link. A collective counts with the slowest
    rank's time, a size with the median of five. Takes some three seconds.

    ``rows``: of a reduce-scatter too, which sharded models need. Gloo's sums everything on every rank and sends twice
    the bytes of a ring's; what is counted are the ring's, so its rate is about half the link's.

    Raises:
        ValueError: one rank alone has no link.
        TransportError: a peer is gone.
    """
    if transport.world == 1:
        raise ValueError("measure: one rank alone has no link. Start several, as in torchrun --nproc-per-node 2 ...")
    speeds: list[Speed] = []
    for kind, make in {**_KINDS, **(_OF_ROWS if rows else {})}.items():
        small, middle = (_point(transport, make, size) for size in (_SMALL, _MIDDLE))
        pace = max(1e-10, (middle.seconds - small.seconds) / (middle.sent - small.sent))
        size = int(min(_LARGEST, max(2 * _MIDDLE, _LONG / pace)))
        near, far = _point(transport, make, size), _point(transport, make, 2 * size)
        speeds.append(Speed(kind, small.seconds / small.rounds, _rate(small, near, far)))
    return Link(min(s.latency for s in speeds), max(s.bandwidth for s in speeds), tuple(speeds), transport.world)


class _Point(NamedTuple):
    rounds: int
    sent: int
    seconds: float


def _rate(small: _Point, near: _Point, far: _Point) -> float:
    """Bits per second; where noise hides the difference, of the largest one alone."""
    took = far.seconds - near.seconds
    if took > 0.2 * near.seconds:
        return 8 * (far.sent - near.sent) / took
    return 8 * far.sent / max(1e-9, far.seconds - small.seconds)


def _point(transport: Transport, make: Callable[[int, int], Collective], size: int) -> _Point:
    """A collective in which a rank sends about ``size`` bytes."""
    world, op = transport.world, make(transport.world, size)
    mark, spent = torch.zeros(1, dtype=torch.float32), torch.zeros(_REPEATS + 1, dtype=torch.float64)
    for i in range(_REPEATS + 1):
        transport.start(AllReduce(mark)).wait()  # all ranks are here
        since = perf_counter()
        transport.start(op).wait()
        spent[i] = perf_counter() - since
    transport.start(AllReduceMax(spent)).wait()
    rounds, sent = steps(Planned(*op.signature, op.sent_bytes(world, transport.rank)), world)
    return _Point(rounds, sent, median(spent[1:].tolist()))


def _sum(world: int, size: int) -> Collective:
    return AllReduce(_numbers(-(-size // 8) * world // (world - 1)))


def _gather(world: int, size: int) -> Collective:
    each = -(-size // (4 * (world - 1)))
    return AllGather(_numbers(each), _numbers(each * world))


def _exchange(world: int, size: int) -> Collective:
    each = -(-size // (4 * (world - 1)))
    return AllToAll(_numbers(each * world), _numbers(each * world), (each,) * world, (each,) * world)


def _rows(world: int, size: int) -> Collective:
    each = -(-size // (4 * (world - 1)))
    return ReduceScatter(_numbers(each * world), _numbers(each))


def _numbers(count: int) -> Tensor:
    return torch.zeros(max(1, count), dtype=torch.float32)


_KINDS: dict[str, Callable[[int, int], Collective]] = {"AllReduce": _sum, "AllGather": _gather, "AllToAll": _exchange}
_OF_ROWS: dict[str, Callable[[int, int], Collective]] = {"ReduceScatter": _rows}
