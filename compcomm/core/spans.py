"""What two layouts have in common, copied or added without a loop over the parameters.

Neighbours that lie the same way in both are one span, so a whole bucket is one copy; the spans of a flat tensor are cut
out by one call of torch. Which they are follows from the two layouts, and is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .layout import Bucket, Layout

_torch: Any = torch


class Cut(NamedTuple):
    """How a flat tensor is cut so that spans come out: the lengths of all pieces, and which of them are spans."""

    sizes: tuple[int, ...]
    pick: Callable[[Any], Sequence[Tensor]]

    def of(self, bucket: Bucket) -> Sequence[Tensor]:
        """Views of the spans."""
        return self.pick(bucket.flat[: bucket.layout.numel].split_with_sizes(self.sizes))


def copy_(to: Bucket, source: Bucket) -> None:
    """Copies the segments that both have."""
    one, other = spans(to.layout, source.layout)
    if one is not None and other is not None:
        _torch._foreach_copy_(one.of(to), other.of(source))


def add_(to: Bucket, source: Bucket, scale: float = 1.0) -> None:
    """to += scale * source in the segments that both have."""
    one, other = spans(to.layout, source.layout)
    if one is not None and other is not None:
        _torch._foreach_add_(one.of(to), other.of(source), alpha=scale)


def move_(to: Bucket, source: Bucket, scale: float = 1.0) -> None:
    """to += scale * source in the segments that both have, where ``source`` is zero afterwards."""
    one, other = spans(to.layout, source.layout)
    if one is not None and other is not None:
        parts = other.of(source)
        if scale != 1.0:
            _torch._foreach_mul_(parts, scale)
        _torch._foreach_add_(one.of(to), parts)
        _torch._foreach_zero_(parts)


def clear_(bucket: Bucket) -> None:
    """Zeroes every segment; padding keeps its content."""
    own, _ = spans(bucket.layout, bucket.layout)
    if own is not None:
        _torch._foreach_zero_(own.of(bucket))


def clear_padding(bucket: Bucket) -> None:
    """Zeroes what no segment covers."""
    gaps = _gaps(bucket.layout)
    if gaps is not None:
        _torch._foreach_zero_(gaps.of(bucket))


@lru_cache(maxsize=4096)
def spans(one: Layout, other: Layout) -> tuple[Cut, Cut] | tuple[None, None]:
    """Where the segments that both have lie in either, in the same order; None where there are none."""
    found: list[list[int]] = []  # from, from, length
    for s in other.segments:
        at = one.position(s) if s.numel else -1
        if at < 0:
            continue
        if found and (at, s.start) == (found[-1][0] + found[-1][2], found[-1][1] + found[-1][2]):
            found[-1][2] += s.numel
        else:
            found.append([at, s.start, s.numel])
    if not found:
        return None, None
    a, b, _ = zip(*found, strict=True)
    lengths = [length for *_, length in found]
    return _cut(a, lengths, one.numel), _cut(b, lengths, other.numel)


@lru_cache(maxsize=4096)
def _gaps(layout: Layout) -> Cut | None:
    starts: list[int] = []
    lengths: list[int] = []
    position = 0
    ends = sorted((s.start, s.stop) for s in layout.segments if s.numel)
    for start, stop in (*ends, (layout.numel, layout.numel)):
        if start > position:
            starts.append(position)
            lengths.append(start - position)
        position = max(position, stop)
    return _cut(starts, lengths, layout.numel) if starts else None


def _cut(starts: Sequence[int], lengths: Sequence[int], numel: int) -> Cut:
    sizes: list[int] = []
    pieces, position = [0] * len(starts), 0
    for i in sorted(range(len(starts)), key=starts.__getitem__):
        if starts[i] > position:
            sizes.append(starts[i] - position)
        pieces[i] = len(sizes)
        sizes.append(lengths[i])
        position = starts[i] + lengths[i]
    if position < numel:
        sizes.append(numel - position)
    first = pieces[0]
    return Cut(tuple(sizes), itemgetter(*pieces) if len(pieces) > 1 else itemgetter(slice(first, first + 1)))
