"""Damage: what happens to the bytes of a message, at random or where it hurts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
EXTREMES = (0, 1, 2, 3, 4, 5, 8, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFC, 0xFFFFFFFF)
FLOATS = (0x7F800000, 0xFF800000, 0x7FC00000, 0x7F7FFFFF, 0x00000001, 0x80000000)  # infinities, NaN, largest, least, -0


def damage(message: Bytes, places: Sequence[int], random: Random) -> str:
    """Changes some bytes in place, one to four times, and says how. ``places``: where headers and sections begin, to
    which much of it goes."""
    if not len(message):
        return "nothing to damage"
    done: list[str] = []
    for _ in range(random.randint(1, 4)):
        kind = random.choice(_KINDS)
        at = random.randrange(len(message))
        if places and random.random() < 0.7:  # the words that say how much there is stand in front
            at = min(len(message) - 1, random.choice(places) + 4 * random.choice((0, 0, 0, 1, 1, 2, 3, 4, 5, 8, 16)))
        kind(message, at, places, random)
        done.append(f"{kind.__name__[1:]} at byte {at}")
    return ", ".join(done)


def _flip(message: Bytes, at: int, places: Sequence[int], random: Random) -> None:
    for _ in range(random.choice((1, 1, 1, 8))):
        message[(at + random.randrange(64)) % len(message)] ^= 1 << random.randrange(8)


def _noise(message: Bytes, at: int, places: Sequence[int], random: Random) -> None:
    part = message[at : at + random.choice((1, 2, 4, 64, 4096))]
    part[:] = np.frombuffer(random.randbytes(len(part)), np.uint8)


def _tail(message: Bytes, at: int, places: Sequence[int], random: Random) -> None:
    """Truncated: what follows never came."""
    message[at : min((p for p in places if p > at), default=len(message))] = random.choice((0, 0xFF))


def _extreme(message: Bytes, at: int, places: Sequence[int], random: Random) -> None:
    width = random.choice((2, 4, 4))
    _write(message, at, random.choice(EXTREMES), width)


def _float(message: Bytes, at: int, places: Sequence[int], random: Random) -> None:
    _write(message, at // 4 * 4, random.choice(FLOATS), 4)


def _shift(message: Bytes, at: int, places: Sequence[int], random: Random) -> None:
    """A count or a length that is off by a little."""
    word = int.from_bytes(message[at : at + 4].tobytes(), "little")
    _write(message, at, (word + random.choice((-8, -4, -1, 1, 4, 8, 256, 65536))) & 0xFFFFFFFF, 4)


def _splice(message: Bytes, at: int, places: Sequence[int], random: Random) -> None:
    """Another section's bytes, or the same ones from elsewhere."""
    source = random.choice(places) if places else random.randrange(len(message))
    count = min(random.choice((4, 64, 1024, len(message))), len(message) - max(source, at))
    message[at : at + count] = message[source : source + count].copy()


def _write(message: Bytes, at: int, value: int, width: int) -> None:
    part = message[at : at + width]
    part[:] = np.frombuffer((value & (1 << 8 * width) - 1).to_bytes(width, "little"), np.uint8)[: len(part)]


_KINDS: tuple[Callable[[Bytes, int, Sequence[int], Random], None], ...] = (
    _flip, _noise, _tail, _extreme, _extreme, _float, _shift, _shift, _splice,
)  # fmt: skip
