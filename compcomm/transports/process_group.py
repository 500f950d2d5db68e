"""Runs the yielded collectives on a ``torch.distributed`` process group, Gloo or NCCL.

Whoever calls ``start`` owns the order: a group matches collectives between ranks by the order in which each rank
starts them, so one thread starts all of them, in an order that depends on the step's buckets and on nothing else.

On Gloo, what is gathered or exchanged travels as messages (see ``messages``), whole and in place. An all-reduce goes
whole: its ring is pipelined already (100 MB between 4 hosts at 1 Gbit/s take 1.258 s where 1.255 s is ideal), and a cut
would change in which order floats are added.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..core.collectives import (
    AllGather,
    AllReduce,
    AllReduceMax,
    AllToAll,
    Broadcast,
    Collective,
    ReduceScatter,
)
from ..core.transport import TransportError
from . import compat
from .messages import Exchange, Tails
from .staged import Staging
from .worker import Worker


class Pending:
    """A started collective; ``wait`` returns when its result is there (on CUDA: on the current stream)."""

    __slots__ = ("_back", "_op", "_owner", "_works")

    def __init__(
        self, owner: ProcessGroup, op: Collective, works: list[Any], back: Callable[[], None] | None = None
    ) -> None:
        self._owner, self._op, self._works, self._back = owner, op, works, back

    def ready(self) -> bool:
        """Whether ``wait`` would return at once."""
        for work in self._works:  # noqa: SIM110  (asked of every bucket: a generator would be a call more for each)
            if not work.is_completed():
                return False
        return True

    def wait(self) -> None:
        """Waits.

        Raises:
            TransportError: a peer died, or the group's timeout passed.
        """
        try:
            for work in self._works:
                work.wait()
            if self._back is not None:
                self._back()
        except RuntimeError as error:
            raise self._owner.lost(self._op, error) from error
        finally:
            self._owner.on_done()


class ProcessGroup:
    """A transport over ``group``; None: a world of one rank, where results are copied and nothing is sent.

    ``staged``: tensors go through the host's memory, and ``start`` waits for the device (None: where the group is Gloo
    and they are on a GPU).
    ``seconds`` is the time during which a collective was in flight.
    """

    @classmethod
    def over(
        cls,
        group: dist.ProcessGroup | None,
        device: torch.device | str = "cpu",
        timeout: timedelta | None = None,
        *,
        staged: bool | None = None,
        ring: bool = False,
    ) -> ProcessGroup:
        """A transport of its own over the ranks of ``group`` (None: all), beside whatever else uses that group: what
        a host gives to a session. Collective: every one of these ranks calls it.

        ``timeout``: of one collective; None: torch's default. ``ring``: what is gathered on Gloo goes around a ring,
        and not as messages to every rank. Where several ranks share a host, and ranks are numbered host by host, its
        link then carries a rank's part once, and not once for each rank beyond.
        """
        device = torch.device(device)
        alone = dist.get_world_size(group) == 1
        made = cls(None if alone else compat.new_group(group, timeout, device), device, staged=staged, ring=ring)
        made._default = dist.group.WORLD
        made._given = None if group is made._default else group
        return made

    def __init__(
        self,
        group: dist.ProcessGroup | None = None,
        device: torch.device | str = "cpu",
        *,
        staged: bool | None = None,
        ring: bool = False,
    ) -> None:
        self.group = group
        self.rank = 0 if group is None else dist.get_rank(group)
        self.world = 1 if group is None else dist.get_world_size(group)
        self.seconds = 0.0
        self._flying = 0
        self._since = 0.0
        self._number = 0
        self._tails: list[Tails] = []
        self._wire: Worker | None = None
        self.device = torch.device(device)
        self._default: Any = None
        self._given: dist.ProcessGroup | None = None
        gloo = group is not None and compat.backend(group, self.device) == "gloo"
        on_gpu = self.device.type != "cpu"
        self._staging = Staging(self.device) if (gloo and on_gpu if staged is None else staged) else None
        self.staged = self._staging is not None
        messages: _Run = {AllToAll: _all_to_all} if ring and self.world > 2 else _MESSAGES
        self._run = _ALONE if group is None else {**_WHOLE, **messages} if gloo else _WHOLE

    def start(self, op: Collective) -> Pending:
        """Starts a collective and returns at once.

        Raises:
            TransportError: the group is lost.
        """
        if self._flying == 0:
            self._since = perf_counter()
        self._flying += 1
        try:
            if self._staging is not None:
                mirrored, back = self._staging.down(op)
                return Pending(self, op, self._run[type(op)](self, mirrored), back)
            return Pending(self, op, self._run[type(op)](self, op))
        except RuntimeError as error:
            self.on_done()
            raise self.lost(op, error) from error

    def on_done(self) -> None:
        """Counts a collective as done."""
        self._flying -= 1
        if self._flying == 0:
            self.seconds += perf_counter() - self._since

    def lost(self, op: Collective, error: Exception) -> TransportError:
        """The error for a collective that did not finish."""
        kind, dtype, nbytes = op.signature
        return TransportError(
            f"rank {self.rank} of {self.world}: {kind} of {nbytes} bytes ({dtype}) did not finish: a peer has died, or "
            f"is later than the group's timeout (as where `enabled`, `passes`, `hold` or the buckets differ between "
            f"ranks). The cause is in the log of the first rank that stopped. [{error}]"
        )

    def check(self) -> None:
        """Whether the groups that it was made over are there still: that of ``over``, and torch's own.

        Raises:
            TransportError: one was destroyed.
        """
        if self._default is None:
            return
        if dist.group.WORLD is not self._default or (self._given is not None and not compat.alive(self._given)):
            raise TransportError(
                "its process group was destroyed (torch.distributed.destroy_process_group()), so nothing averages "
                "these gradients."
            )

    def close(self) -> None:
        """Ends the thread. The group stays until ``destroy_process_group()``: torch would give its name to the next
        group over the same ranks, whose members would then meet at the old addresses."""
        if self._wire is not None:
            self._wire.close()

    def exchange(self, sends: Sequence[Tensor], receives: Sequence[Tensor]) -> Exchange:
        """Starts an exchange of messages with every rank."""
        assert self.group is not None
        self._number = (self._number + 1) & 0x3FFFFFFF
        made = Exchange(self.group, self.rank, sends, receives, self._number, self._tails)
        if self.world <= 2 or made.small:
            made.post()
        else:  # one round after the other, in a thread that is there from the first large message on
            self._wire = self._wire or Worker(self, "compcomm-wire")
            self._wire.do(made.run)
        return made


def _all_reduce(t: ProcessGroup, op: AllReduce) -> list[Any]:
    return [dist.all_reduce(op.buffer, group=t.group, async_op=True)]


def _all_reduce_max(t: ProcessGroup, op: AllReduceMax) -> list[Any]:
    return [dist.all_reduce(op.buffer, dist.ReduceOp.MAX, group=t.group, async_op=True)]


def _all_gather_whole(t: ProcessGroup, op: AllGather) -> list[Any]:
    assert t.group is not None
    return [compat.all_gather(op.recv, op.send, t.group)]


def _all_gather(t: ProcessGroup, op: AllGather) -> list[Any]:
    return [t.exchange([op.send] * t.world, op.recv.chunk(t.world))] if op.send.numel() else []


def _all_to_all_whole(t: ProcessGroup, op: AllToAll) -> list[Any]:
    return [
        dist.all_to_all_single(
            op.recv, op.send, list(op.recv_splits), list(op.send_splits), group=t.group, async_op=True
        )
    ]


def _all_to_all(t: ProcessGroup, op: AllToAll) -> list[Any]:
    send, recv = torch.split(op.send, list(op.send_splits)), torch.split(op.recv, list(op.recv_splits))
    return [t.exchange(send, recv)]


def _reduce_scatter(t: ProcessGroup, op: ReduceScatter) -> list[Any]:
    assert t.group is not None
    return [compat.reduce_scatter(op.recv, op.send, t.group)]


def _broadcast(t: ProcessGroup, op: Broadcast) -> list[Any]:
    assert t.group is not None
    source = dist.get_global_rank(t.group, op.source)
    return [dist.broadcast(op.buffer, source, group=t.group, async_op=True)]


def _nothing(t: ProcessGroup, op: Any) -> list[Any]:
    return []


def _copy(t: ProcessGroup, op: Any) -> list[Any]:
    op.recv.copy_(op.send)
    return []


_Run = dict[type[Collective], Callable[[ProcessGroup, Any], list[Any]]]
_WHOLE: _Run = {
    AllReduce: _all_reduce,
    AllReduceMax: _all_reduce_max,
    AllGather: _all_gather_whole,
    AllToAll: _all_to_all_whole,
    ReduceScatter: _reduce_scatter,
    Broadcast: _broadcast,
}
_MESSAGES: _Run = {AllGather: _all_gather, AllToAll: _all_to_all}
_ALONE: _Run = {
    AllReduce: _nothing,
    AllReduceMax: _nothing,
    AllGather: _copy,
    AllToAll: _copy,
    ReduceScatter: _copy,
    Broadcast: _nothing,
}
