"""Buckets as DistributedDataParallel cuts them, on paper."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from ..core.layout import Layout

MIB = 1 << 20


def cut(shapes: Iterable[tuple[str, tuple[int, ...]]], first: int = MIB, cap: int = 25 * MIB) -> tuple[Layout, ...]:
    """Layouts of the buckets in the order in which a backward pass fills them: the last parameter first.

    A bucket is closed by the parameter that brings it to its size in bytes (fp32): 1 MiB for the first, so that the
    wire has work soon, then 25 MiB; the defaults of DDP (``bucket_cap_mb``).

    >>> [layout.numel for layout in cut([("a", (9, 9)), ("b", (300_000,))])]
    [300000, 81]
    """
    groups: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    size = 0
    for name, shape in reversed(list(shapes)):
        if size >= (first if len(groups) == 1 else cap):
            groups.append([])
            size = 0
        groups[-1].append((name, shape))
        size += 4 * prod(shape)
    return tuple(Layout.of(group) for group in groups)
