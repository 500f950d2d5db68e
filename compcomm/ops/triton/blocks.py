"""The shape of a program that treats whole blocks: NB blocks of ``block`` elements, padded to a power of two.

A tile is [NB, WIDE]: block b of the tile in row b, the columns from ``block`` on unused. Codes of 1 to 8 bits of a tile
begin at a byte, since a block is a multiple of 16, and end at a word, since NB is even.
"""

from __future__ import annotations

from typing import NamedTuple

from triton import next_power_of_2


class Blocks(NamedTuple):
    """``nb`` blocks to a program, ``wide`` columns each."""

    nb: int
    wide: int
    block: int

    @property
    def tile(self) -> int:
        """Elements to a program."""
        return self.nb * self.block

    @property
    def exact(self) -> bool:
        """Whether the tile is one run of elements, without unused columns."""
        return self.wide == self.block


def blocks(block: int, tile: int = 4096) -> Blocks:
    """About ``tile`` elements to a program, and two blocks at least."""
    wide = next_power_of_2(block)
    return Blocks(max(2, tile // wide), wide, block)


class Pieces(NamedTuple):
    """``nb`` blocks to a program, ``chunk`` columns of each at a time."""

    nb: int
    chunk: int
    block: int

    @property
    def tile(self) -> int:
        """Elements to a program."""
        return self.nb * self.block


def pieces(block: int, tile: int, piece: int) -> Pieces:
    """Like ``blocks``, for any length: a program has a block of ``tile`` elements and more alone. It takes about
    ``piece`` elements at a time, since more need so many registers that few programs fit a processor."""
    wide = next_power_of_2(block)
    nb = max(1, min(tile // wide, piece // 16))
    return Pieces(nb, min(wide, tile, max(16, piece // nb)), block)
