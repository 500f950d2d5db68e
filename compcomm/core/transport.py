"""The contract of a transport: what carries the collectives that reducers yield.

A reducer says what is to be exchanged (``collectives``); a transport knows how. Whoever runs a reducer in training is
handed one by its host, and knows nothing else of processes, groups and networks:

    transport = ...                                   # rank r of W, made by a host
    pending = transport.start(AllReduce(buffer))      # returns at once
    pending.wait()                                    # ``buffer`` holds the sum of all ranks' buffers

A new one (MPI, a federated round, a test's) is a class with these members; nothing is to be inherited or registered.

Order is all that binds the ranks together: collective number n that one rank starts on a transport is matched with
number n of every other. So one thread starts all collectives of a transport, in an order that follows from the
configuration alone, and two users that run at the same time have a transport each.
"""

from __future__ import annotations

from typing import Protocol

import torch

from .collectives import Collective


class TransportError(RuntimeError):
    """A collective did not finish, or cannot be started: a peer is gone, or later than the timeout. What a transport
    raised this for once carries nothing more, and its ranks no longer know what the others have."""


class Pending(Protocol):
    """A collective on its way."""

    def ready(self) -> bool:
        """Whether ``wait`` would return at once."""
        ...

    def wait(self) -> None:
        """Returns when the result is in the collective's receiving tensor; for a stream of a device: when what is put
        on the current stream from now on comes after it.

        Raises:
            TransportError: a peer is gone, or the timeout has passed.
        """
        ...


class Transport(Protocol):
    """Rank ``rank`` of ``world``, for tensors on ``device``."""

    @property
    def rank(self) -> int:
        """Which of the ranks this one is, from 0."""
        ...

    @property
    def world(self) -> int:
        """How many ranks there are; where it is 1, results are copies and nothing is sent."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the collectives' tensors are."""
        ...

    @property
    def staged(self) -> bool:
        """Whether ``start`` waits for the device, since tensors go through the host's memory: not to be called in the
        thread that keeps the device at work."""
        ...

    @property
    def seconds(self) -> float:
        """How long a collective was on its way, all together; times in which several were count once."""
        ...

    def start(self, op: Collective) -> Pending:
        """Starts a collective. Its tensors belong to the transport until the result is there.

        Raises:
            TransportError: it carries nothing more.
        """
        ...

    def check(self) -> None:
        """Whether it can still be used, as far as this rank knows by itself; asks nobody, and costs next to nothing.

        Raises:
            TransportError: no, and why: somebody has destroyed the group that it is made of.
        """
        ...

    def close(self) -> None:
        """Lets go of threads and whatever else it has made. No collective is on its way then."""
        ...
