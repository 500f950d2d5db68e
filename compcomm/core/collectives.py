"""The closed vocabulary in which reducers speak to a transport.

A reducer yields one of these and is resumed when the result lies in the collective's receiving tensor. All tensors
are contiguous and one-dimensional. Every rank yields the same sequence of (kind, dtype, bytes), where a body whose
length the ranks agreed on in this step counts with its capacity; no value that only one rank knows may change it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

INSIDE = "inside"
"""``Collective.axis`` of those among the ranks of one node."""


@dataclass(frozen=True, eq=False)
class Collective:
    """One logical collective over all ranks of the transport that it is given to; or, by ``axis``, over those that
    share this rank's node. Bytes inside a node do not count as sent."""

    axis: str = field(default="", kw_only=True)

    def sent_bytes(self, world: int, rank: int) -> int:
        """Bytes that one rank puts on the wire, link headers apart."""
        raise NotImplementedError

    def counted_bytes(self, world: int, rank: int) -> int:
        """``sent_bytes`` that leave the node."""
        return 0 if self.axis == INSIDE else self.sent_bytes(world, rank)

    @property
    def signature(self) -> tuple[str, str, int]:
        """(kind, dtype, bytes of the largest buffer or its capacity): what all ranks must agree on beforehand."""
        raise NotImplementedError


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


@dataclass(frozen=True, eq=False)
class AllReduce(Collective):
    """``buffer`` becomes the sum over the ranks. A ring sends 2 (W-1)/W of it."""

    buffer: Tensor

    def sent_bytes(self, world: int, rank: int) -> int:
        return 2 * (_bytes(self.buffer) * (world - 1) // world)

    @property
    def signature(self) -> tuple[str, str, int]:
        return "AllReduce", _dtype(self.buffer), _bytes(self.buffer)


@dataclass(frozen=True, eq=False)
class AllReduceMax(Collective):
    """``buffer`` becomes the element-wise maximum over the ranks. A ring sends 2 (W-1)/W of it."""

    buffer: Tensor

    def sent_bytes(self, world: int, rank: int) -> int:
        return 2 * (_bytes(self.buffer) * (world - 1) // world)

    @property
    def signature(self) -> tuple[str, str, int]:
        return "AllReduceMax", _dtype(self.buffer), _bytes(self.buffer)


@dataclass(frozen=True, eq=False)
class AllGather(Collective):
    """``recv`` (W times as long) becomes every rank's ``send``, in rank order. Each rank sends its own W-1 times.

    ``capacity``: where the length was agreed on in this step, the bytes that ``recv`` has at most.
    """

    send: Tensor
    recv: Tensor
    capacity: int = 0

    def sent_bytes(self, world: int, rank: int) -> int:
        return _bytes(self.send) * (world - 1)

    @property
    def signature(self) -> tuple[str, str, int]:
        return "AllGather", _dtype(self.send), self.capacity or _bytes(self.recv)


@dataclass(frozen=True, eq=False)
class AllToAll(Collective):
    """Part r of ``send`` goes to rank r; ``recv`` holds what every rank sent here. Splits count elements.

    ``capacity``: where the lengths were agreed on in this step, the bytes that a rank sends at most.
    """

    send: Tensor
    recv: Tensor
    send_splits: tuple[int, ...]
    recv_splits: tuple[int, ...]
    capacity: int = 0

    def sent_bytes(self, world: int, rank: int) -> int:
        return _bytes(self.send) - self.send_splits[rank] * self.send.element_size()

    @property
    def signature(self) -> tuple[str, str, int]:
        return "AllToAll", _dtype(self.send), self.capacity or _bytes(self.send)


@dataclass(frozen=True, eq=False)
class ReduceScatter(Collective):
    """``recv`` becomes this rank's of the W equal parts of the sum of ``send``."""

    send: Tensor
    recv: Tensor

    def sent_bytes(self, world: int, rank: int) -> int:
        return _bytes(self.recv) * (world - 1)

    @property
    def signature(self) -> tuple[str, str, int]:
        return "ReduceScatter", _dtype(self.send), _bytes(self.send)


@dataclass(frozen=True, eq=False)
class Broadcast(Collective):
    """``buffer`` becomes rank ``source``'s."""

    buffer: Tensor
    source: int = 0

    def sent_bytes(self, world: int, rank: int) -> int:
        return _bytes(self.buffer) * (world - 1) if rank == self.source else 0

    @property
    def signature(self) -> tuple[str, str, int]:
        return "Broadcast", _dtype(self.buffer), _bytes(self.buffer)


@dataclass(frozen=True, eq=False)
class Commit(Collective):
    """The last yield of every flow, and no traffic: answered, once the last bucket of the step is done, with True
    when any bucket of the step met a non-finite gradient on any rank, so that the step is to be undone."""

    def sent_bytes(self, world: int, rank: int) -> int:
        return 0

    @property
    def signature(self) -> tuple[str, str, int]:
        return "Commit", "", 0
