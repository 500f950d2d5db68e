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


class Tails:
    """What goes behind the messages of one exchange, and what comes behind theirs; used again by later exchanges."""

    def __init__(self, world: int) -> None:
        both = torch.zeros(2, world, 2, dtype=torch.int64)
        self.due: list[Tensor] = list(both[0])
        self.found: list[Tensor] = list(both[1])
        self.due_words: Any
        self.due_words, self.found_words = both.numpy()


class Exchange:
    """Message p of ``sends`` goes to rank p, message p of ``receives`` comes from there; a rank's own is copied.

    ``post`` starts all rounds at once; ``run`` does one after the other and may be called in a thread of its own, then
    ``wait`` waits for it. ``free``: tails that nobody uses; those of an exchange that went well go back there.
    """

    def __init__(
        self, group: dist.ProcessGroup, rank: int, sends: Sequence[Tensor], receives: Sequence[Tensor], number: int,
        free: list[Tails],
    ) -> None:  # fmt: skip
        self._pg: Any = group
        self._rank, self._world, self._number = rank, len(sends), number
        self._sends, self._receives = sends, receives
        self._free: list[Tails] | None = free
        self._tails = free.pop() if free else Tails(self._world)
        sizes = [message.numel() * message.element_size() for message in sends]
        self._tails.due_words[:, 0] = number
        self._tails.due_words[:, 1] = sizes
        self._rounds: list[tuple[int, list[Any]]] = []
        self._done = threading.Event()
        self._error: RuntimeError | None = None
        self.small = max(sizes, default=0) <= _SMALL

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
        if not self._done.is_set():
            return False
        for _, works in self._rounds:
            for work in works:
                if not work.is_completed():
                    return False
        return True

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
        if self._free is not None:
            self._free.append(self._tails)
            self._free = None

    def _start(self, shift: int) -> None:
        source, target, tag = (self._rank - shift) % self._world, (self._rank + shift) % self._world, self._number
        works = [
            self._pg.recv([self._receives[source]], source, tag),
            self._pg.recv([self._tails.found[source]], source, tag),
            self._pg.send([self._sends[target]], target, tag),
            self._pg.send([self._tails.due[target]], target, tag),
        ]
        self._rounds.append((source, [works[1], works[3], works[0], works[2]]))

    def _finish(self, source: int, works: list[Any]) -> None:
        for work in works:
            work.wait()
        expected = self._receives[source].numel() * self._receives[source].element_size()
        number, nbytes = self._tails.found_words[source].tolist()
        if (number, nbytes) != (self._number, expected):
            raise RuntimeError(
                f"rank {source} sent {nbytes} bytes as exchange {number} where {expected} bytes as exchange "
                f"{self._number} were due"
            )
