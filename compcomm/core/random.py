"""Random numbers as a function of (seed, parameter name, step, rank): nothing to store, nothing to synchronise.

Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011) keyed by BLAKE2 of
the parameter's name. Draws that all ranks must share leave the rank out of the counter; rounding noise puts it in,
because noise that is equal on all ranks does not average out. The layout of the kernels' draws is in
``ops/reference/philox``; what ``Rng`` draws itself is below, in integers of torch, so any device gives the same bits.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..ops.reference.philox import philox
from .layout import Segment

_WORD = 0xFFFFFFFF
_FACTORS = np.array([[0xD2511F53], [0xCD9E8D57]], np.uint64)
_STEPS = np.array([[0x9E3779B9], [0xBB67AE85]], np.uint64)
_OURS = 0x80000000  # the last word of the counter; kernels draw from streams of small numbers


@lru_cache(maxsize=65536)
def key(seed: int, name: str) -> int:
    """The 64-bit Philox key of a parameter, as a signed integer (the way an int64 tensor holds it)."""
    digest = blake2b(name.encode(), digest_size=8, key=seed.to_bytes(8, "little", signed=True)).digest()
    return int.from_bytes(digest, "little", signed=True)


class Rng(NamedTuple):
    """The coordinates of a draw: equal coordinates give equal numbers on every machine and backend.

    A compressor gets one with each parameter, at the sender with the sender's ``rank``, at a receiver with its own.
    What a receiver needs as well must therefore be ``shared``, which leaves the rank out. There is no state: the same
    call gives the same numbers, at the next step others; ``stream`` sets draws of one step apart.

    Word i mod 4 of Philox(counter=(i // 4, step, rank, 2^31 + 2 stream), key of seed and name) is the number of element
    i of a parameter; shared ones have rank 0 and 2^31 + 2 stream + 1.
    """

    seed: int = 0
    step: int = 0
    rank: int = 0

    def bits(
        self, segment: Segment, device: torch.device, *, count: int | None = None, shared: bool = False, stream: int = 0
    ) -> Tensor:
        """Integers of 32 random bits, int64 in [0, 2^32), on ``device``.

        Args:
            segment: for which parameter. A piece of one gets what its elements have in the whole.
            device: where: that of the tensor that they meet, ``y.device`` or ``code.device``.
            count: how many; default: one per element, ``segment.numel``. The first is always that of its first element.
            shared: the same on all ranks, so that a receiver can draw them too.
            stream: 0 to 2^30 - 1; other streams have other numbers.

        Raises:
            ValueError: a count below zero, or a stream that is none.
        """
        count = segment.numel if count is None else count
        if count < 0 or not 0 <= stream < 1 << 30:
            raise ValueError(
                f"Rng.bits({segment.name!r}, count={count}, stream={stream}): count is a number of draws, from 0 on, "
                f"and stream one of 0 to 2^30 - 1."
            )
        first, last = segment.offset // 4, -(-(segment.offset + count) // 4)
        rank, last_word = (0 if shared else self.rank), _OURS + 2 * stream + shared
        draw = on_the_host if torch.device(device).type == "cpu" else on_a_device
        words = draw(first, last, (self.step, rank, last_word), key(self.seed, segment.name), device)
        return words.view(-1)[segment.offset - 4 * first :][:count]

    def uniform(
        self, segment: Segment, device: torch.device, *, count: int | None = None, shared: bool = False, stream: int = 0
    ) -> Tensor:
        """Numbers in (0, 1), fp32: (b + 1/2)/2^23 of the upper 23 bits, exact, never 0 or 1, mean 1/2. See ``bits``."""
        drawn = self.bits(segment, device, count=count, shared=shared, stream=stream)
        return (drawn >> 9).to(torch.float32) * 2.0**-23 + 2.0**-24

    def choose(self, segment: Segment, device: torch.device, k: int, n: int, *, stream: int = 0) -> Tensor:
        """``k`` of the numbers 0..n-1, ascending int64, each set as likely as any; the same on all ranks.

        Those with the k smallest of ``bits(count=n, shared=True)``, so it costs n draws: choose blocks, not elements.

        Raises:
            ValueError: k is not in 0..n.
        """
        if not 0 <= k <= n < 1 << 31:
            raise ValueError(f"Rng.choose({segment.name!r}, k={k}, n={n}): k of n needs 0 <= k <= n < 2^31.")
        shared, name = self._replace(rank=0), segment.name
        return _chosen(
            shared, Segment(name, (), 0, 0, segment.offset), device, k, n, stream
        ).clone()  # theirs to change


def on_a_device(first: int, last: int, rest: tuple[int, int, int], key: int, device: torch.device) -> Tensor:
    """The words of the counters (first..last - 1, *rest), int64 [counters, 4]: some 150 small launches."""
    counters = torch.arange(first, last, dtype=torch.int64, device=device)
    return torch.stack(philox(counters, *rest, key), dim=1)


def on_the_host(first: int, last: int, rest: tuple[int, int, int], key: int, device: torch.device) -> Tensor:
    """The same by numpy, whose calls on few numbers cost a fraction of torch's. Lanes: words 0 and 2, words 1 and 3."""
    even, odd = np.zeros((2, last - first), np.uint64), np.zeros((2, last - first), np.uint64)
    even[0], even[1], odd[0], odd[1] = np.arange(first, last) & _WORD, rest[1] & _WORD, rest[0] & _WORD, rest[2] & _WORD
    keys, mask, half = np.array([[key & _WORD], [key >> 32 & _WORD]], np.uint64), np.uint64(_WORD), np.uint64(32)
    for _ in range(10):
        product = (even * _FACTORS)[::-1]
        even, odd = (product >> half) ^ odd ^ keys, product & mask
        keys = keys + _STEPS & mask
    return torch.from_numpy(np.stack((even[0], odd[0], even[1], odd[1]), axis=1).view(np.int64))


@lru_cache(maxsize=256)
def _chosen(rng: Rng, place: Segment, device: torch.device, k: int, n: int, stream: int) -> Tensor:
    """A step asks thrice: to code, for what is left, and to decode."""
    drawn = rng.bits(place, device, count=n, shared=True, stream=stream)
    unlike = (drawn << 31) + torch.arange(n, dtype=torch.int64, device=device)  # no two are equal on any device
    return unlike.topk(k, largest=False).indices.sort().values
