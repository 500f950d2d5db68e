"""Exchanges between all pairs of a Gloo group, as plain messages: the fastest way over real links.

Measured between hosts with shaped links, in multiples of the time that the bytes take on the wire (2 hosts, 13 MB at
1 Gbit/s; 4 hosts, 3.3 MB to each peer): messages 1.00 and 1.03, the all-gather of Gloo 1.54 and 1.07 (a ring of two
segments that wait for each other), its all-to-all 2.00 and 1.46 (one direction, then the other).

With W ranks there are W-1 rounds. In round i a rank sends to the rank i places on and receives from the one i places
back, so every link carries one flow at a time; messages of up to 64 KiB all go at once, which saves wake-ups.

Behind each message goes a tail of two numbers, the exchange's number and the message's bytes, and the tail is waited
for first. Gloo notices a dead peer only for operations that have not begun: the tail is one.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_SMALL = 1 << 16


class Exchange:
    """Message p of ``sends`` goes to rank p, message p of ``receives`` comes from there; a rank's own is copied.

    ``post`` starts all rounds at once; ``run`` does one after the other and may be called in a thread of its own, then
    ``wait`` waits for it.
    """

    def __init__(
        self, group: dist.ProcessGroup, rank: int, sends: Sequence[Tensor], receives: Sequence[Tensor], number: int
    ) -> None:
        self._pg: Any = group
        self._rank, self._world, self._number = rank, len(sends), number
        self._sends, self._receives = sends, receives
        self._due = torch.zeros(self._world, 2, dtype=torch.int64)
        self._tails = torch.zeros(self._world, 2, dtype=torch.int64)
        for p, message in enumerate(sends):
            self._due[p, 0], self._due[p, 1] = number, message.numel() * message.element_size()
        self._rounds: list[tuple[int, list[Any]]] = []
        self._done = threading.Event()
        self._error: RuntimeError | None = None
        self.small = max((m.numel() * m.element_size() for m in sends), default=0) <= _SMALL

    def post(self) -> None:
        """Starts everything."""
        for shift in range(1, self._world):
            self._start(shift)
        self._receives[self._rank].copy_(self._sends[self._rank])
        self._done.set()

    def run(self) -> None:
        """Starts one round after the other; never raises, ``wait`` does."""
        try:
            for shift in range(1, self._world):
                self._start(shift)
                if shift == 1:
                    self._receives[self._rank].copy_(self._sends[self._rank])
                self._finish(*self._rounds.pop())
        except RuntimeError as error:
            self._error = error
        finally:
            self._done.set()

    def is_completed(self) -> bool:
        """Whether every message is here."""
        return self._done.is_set() and all(work.is_completed() for _, works in self._rounds for work in works)

    def wait(self) -> None:
        """Waits until every message is here.

        Raises:
            RuntimeError: a peer is gone, late, or sent something else.
        """
        self._done.wait()
        if self._error is not None:
            raise self._error
        while self._rounds:
            self._finish(*self._rounds.pop(0))

    def _start(self, shift: int) -> None:
        source, target, tag = (self._rank - shift) % self._world, (self._rank + shift) % self._world, self._number
        works = [
            self._pg.recv([self._receives[source]], source, tag),
            self._pg.recv([self._tails[source]], source, tag),
            self._pg.send([self._sends[target]], target, tag),
            self._pg.send([self._due[target]], target, tag),
        ]
        self._rounds.append((source, [works[1], works[3], works[0], works[2]]))

    def _finish(self, source: int, works: list[Any]) -> None:
        for work in works:
            work.wait()
        expected = self._receives[source].numel() * self._receives[source].element_size()
        number, nbytes = (int(n) for n in self._tails[source].numpy())
        if (number, nbytes) != (self._number, expected):
            raise RuntimeError(
                f"rank {source} sent {nbytes} bytes as exchange {number} where {expected} bytes as exchange "
                f"{self._number} were due"
            )
