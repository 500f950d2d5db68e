"""Elias' recursive omega code (Elias 1975, IEEE Trans. Inf. Theory 21(2)) and the bit streams that hold it.

    omega(1) = 0
    omega(k) = omega'(bits(k) - 1) k 0      k in binary, high bit first; omega' is omega without its closing 0

so 2: 10 0,  4: 10 100 0,  16: 10 100 10000 0;  1, 3, 6, 7, 11, 13, 17 bits for k = 1, 2, 4, 8, 16, 100, 1000.
The first bit of a word comes first in the stream, and bit 0 of the stream is the low bit of byte 0. A word is kept as a
number with its first bit lowest, beside its length.
"""

from __future__ import annotations

import torch
from torch import Tensor

MOST = 1 << 41
"""The longest word is that of MOST - 1: 53 bits."""


def omega(k: Tensor) -> tuple[Tensor, Tensor]:
    """Words and lengths (int64) of the numbers ``1 <= k < MOST``."""
    words, lengths = torch.zeros_like(k), torch.ones_like(k)
    while bool((more := k > 1).any()):
        bits = bit_length(k)
        words = torch.where(more, words << bits | _reversed(k, bits), words)
        lengths = torch.where(more, lengths + bits, lengths)
        k = torch.where(more, bits - 1, k)
    return words, lengths


def bit_length(k: Tensor) -> Tensor:
    """Digits of ``k`` in binary."""
    bits = torch.zeros_like(k)
    while bool(k.any()):
        bits, k = bits + (k > 0), k >> 1
    return bits


def _reversed(k: Tensor, bits: Tensor) -> Tensor:
    """The ``bits`` low bits of ``k``, the other way round."""
    result = torch.zeros_like(k)
    for i in range(int(bits.max()) if bits.numel() else 0):
        result = torch.where(i < bits, result << 1 | (k >> i & 1), result)
    return result


def stream(words: Tensor, lengths: Tensor) -> Tensor:
    """The words one after the other, as bytes; zero bits after the last."""
    starts = lengths.cumsum(0) - lengths
    word = torch.repeat_interleave(lengths)
    place = torch.arange(word.numel(), dtype=torch.int64, device=words.device) - starts[word]
    bits = torch.nn.functional.pad(words[word] >> place & 1, (0, -word.numel() % 8)).view(-1, 8)
    return (bits << torch.arange(8, dtype=torch.int64, device=words.device)).sum(1).to(torch.uint8)


class Reader:
    """Reads a stream bit by bit. Behind its last byte lie zeros: ask ``overrun`` when done."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data, self.at = data, at

    def take(self, bits: int) -> int:
        """The next bits, the first one lowest."""
        first = self.at >> 3
        word = int.from_bytes(self.data[first : (self.at + bits + 7) >> 3], "little") >> (self.at & 7)
        self.at += bits
        return word & ((1 << bits) - 1)

    def omega(self) -> int:
        """The next number; 0 when it is no number below MOST."""
        k = 1
        while self.take(1):
            if k > 40:
                return 0
            k = int("1" + f"{self.take(k):0{k}b}"[::-1], 2)
        return k

    @property
    def overrun(self) -> bool:
        return self.at > 8 * len(self.data)
