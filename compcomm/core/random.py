"""Random numbers as a function of (seed, parameter name, step, rank): nothing to store, nothing to synchronise.

Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011) keyed by BLAKE2 of
the parameter's name. Draws that all ranks must share leave the rank out of the counter; rounding noise puts it in,
because noise that is equal on all ranks does not average out. The layout of the draws is in ``ops/reference/philox``.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple


@lru_cache(maxsize=65536)
def key(seed: int, name: str) -> int:
    """The 64-bit Philox key of a parameter, as a signed integer (the way an int64 tensor holds it)."""
    digest = blake2b(name.encode(), digest_size=8, key=seed.to_bytes(8, "little", signed=True)).digest()
    return int.from_bytes(digest, "little", signed=True)


class Rng(NamedTuple):
    """The coordinates of a draw: equal coordinates give equal numbers on every machine and backend."""

    seed: int = 0
    step: int = 0
    rank: int = 0
