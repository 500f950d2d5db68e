"""The multiple-choice knapsack in whole numbers: one item of each class, all capacities of a range in one table."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray


def cheapest(
    weights: Sequence[Sequence[int]], costs: Sequence[Sequence[int]], lowest: int, highest: int
) -> NDArray[np.int64]:
    """Positions [m, highest - lowest + 1] of one item per class: for each capacity e in lowest..highest the choice of
    least total cost among those whose weights sum to at most e.

    best[l][e] = min_c best[l-1][e - weight_l(c)] + cost_l(c), best[0] = 0; O(m P highest) time, and a byte (two beyond
    256 items) for each class and capacity. Of equal costs the last class takes its first item, then the one before it.

    What makes it fast: a cost carries its item's position in its low bits, so one minimum finds both (and breaks ties
    alike everywhere, as integers do); and of each row only the capacities are filled in that the classes before can use
    up, and that the classes after leave over.

    Args:
        weights: of each class, ascending, the first one 0 (subtract the least from all of them and from the capacity).
        costs: of each class, 0 or more.
        lowest: 0 or more.
        highest: a larger capacity than all weights together buys nothing more.

    Raises:
        OverflowError: costs that could sum to ``most(P)`` or more.
    """
    m, longest = len(weights), max(map(len, weights), default=1)
    if sum(map(max, costs)) > most(longest):
        raise OverflowError(f"costs sum to more than {most(longest)}, with {longest} items in a class.")
    bits = _bits(longest)
    mask = (1 << bits) - 1
    used = list(accumulate((w[-1] for w in weights), initial=0))
    width = min(highest, used[-1]) + 1
    first = min(lowest, width - 1)
    before, after, scratch = np.zeros((3, width), np.int64)
    taken = np.empty((m, width), np.min_scalar_type(mask))
    for i, (w, c) in enumerate(zip(weights, costs, strict=True)):
        old, end = min(width, used[i] + 1), min(width, used[i + 1] + 1)
        start = max(0, first - (used[-1] - used[i + 1]))
        before[old:end] = before[old - 1]
        np.add(before[start:end], c[0] << bits, out=after[start:end])
        for position in range(1, len(w)):
            at = max(start, w[position])
            if at < end:
                trial = scratch[at:end]
                np.add(before[at - w[position] : end - w[position]], c[position] << bits | position, out=trial)
                np.minimum(after[at:end], trial, out=after[at:end])
        np.bitwise_and(after[start:end], mask, out=taken[i, start:end], casting="unsafe")
        taken[i, end:] = taken[i, end - 1]
        np.bitwise_and(after[start:end], ~mask, out=after[start:end])
        before, after = after, before
    left = np.minimum(np.arange(lowest, highest + 1), width - 1)
    found = np.empty((m, len(left)), np.int64)
    for i in reversed(range(m)):
        found[i] = taken[i, left]
        left = left - np.asarray(weights[i])[found[i]]
    return found


def most(items: int) -> int:
    """What costs may sum to, with so many items in a class: positions take the low bits of 62."""
    return 1 << 62 - _bits(items)


def _bits(items: int) -> int:
    return max(1, (items - 1).bit_length())
