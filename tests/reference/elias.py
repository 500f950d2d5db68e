"""QSGD in Elias codes, with strings of "0" and "1": the words of a block in three forms, and the shortest is sent."""

from __future__ import annotations

import numpy as np

from .codes import padded
from .philox import dithers
from .qsgd import F, quantise


def omega(k: int) -> str:
    """Elias' recursive code of k >= 1."""
    word = "0"
    while k > 1:
        word = f"{k:b}" + word
        k = k.bit_length() - 1
    return word


def sign(q: int) -> str:
    return "1" if q < 0 else "0"


def fixed(q: list[int], s: int, bits: int) -> str:
    return "".join(f"{level + s:0{bits}b}"[::-1] for level in q)  # low bit first


def dense(q: list[int]) -> str:
    return "".join(omega(abs(level) + 1) + (sign(level) if level else "") for level in q)


def sparse(q: list[int]) -> str:
    """Without what ends it."""
    word, last = "", -1
    for place, level in enumerate(q):
        if level:
            word += omega(place - last) + sign(level) + omega(abs(level))
            last = place
    return word


def end(q: list[int]) -> str:
    """The gap to the end of the block."""
    return omega(len(q) - max((place for place, level in enumerate(q) if level), default=-1))


def form(q: list[int], s: int, bits: int) -> tuple[int, str]:
    """The shortest form's number and its bits; of equals the first."""
    if not any(q):
        return 3, ""
    forms = [fixed(q, s, bits), dense(q), sparse(q) + end(q)]
    return min(enumerate(forms), key=lambda f: len(f[1]))


def to_bytes(stream: str) -> bytes:
    """The first bit is the low bit of byte 0."""
    return int("0" + stream[::-1], 2).to_bytes(-(-len(stream) // 8), "little")


def encode(
    y: np.ndarray, s: int, bits: int, norm2: bool, block: int, draw: tuple[int, int, int, int] | None
) -> tuple[bytes, np.ndarray]:
    """The section with its unused capacity, and the decoded values."""
    u = None if draw is None else dithers(*draw, len(y))
    steps, values, forms, stream = [], [], "", ""
    for start in range(0, len(y), block):
        cut = slice(start, start + block)
        step, q = quantise(y[cut], s, norm2, 1.0, None if u is None else u[cut])
        number, word = form(q.tolist(), s, bits)
        forms += f"{number:02b}"[::-1]
        stream += word
        steps.append(step)
        values.append(q.astype(F) * step)
    body = np.array(steps, "<f4").tobytes() + to_bytes(forms) + to_bytes(stream)
    used = len(padded(bytes(4) + body))
    section = used.to_bytes(4, "little") + body
    capacity = 4 + 4 * len(steps) + -(-len(steps) // 4) + -(-len(y) * bits // 8)
    return section + bytes(capacity - len(section)), np.concatenate(values)
