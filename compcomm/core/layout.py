"""A flat tensor and, at once, its named and shaped pieces.

A :class:`Layout` says which parameter lies where in a flat buffer; a :class:`Bucket` is a buffer with its layout.
Positions count elements. A layout never moves data: a selection of its segments, or the share of one owner, is a
layout over the same buffer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, lru_cache
from itertools import pairwise
from math import prod
from numbers import Integral
from threading import RLock
from typing import Any, ClassVar, NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from .strides import Order, shaped, storage_order, turned


class Segment(NamedTuple):
    """Elements ``[start, stop)`` of a buffer: parameter ``name`` of ``shape``, from its element ``offset`` on.

    Elements are counted as they lie in memory: ``order`` has the dimensions from the outermost to the innermost, ``()``
    where that is row-major (see ``compcomm.core.strides``).
    """

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int
    offset: int = 0
    order: Order = ()

    @property
    def numel(self) -> int:
        return self.stop - self.start

    @property
    def whole(self) -> bool:
        """Whether this is the entire parameter."""
        return self.numel == prod(self.shape)

    def piece(self, low: int, high: int) -> Segment:
        """Elements ``[low, high)`` of this segment, at the place where they are."""
        return Segment(self.name, self.shape, self.start + low, self.start + high, self.offset + low, self.order)

    def share(self, rank: int, world: int, alignment: int = 1) -> Segment:
        """What ``rank`` owns: with nb blocks of ``alignment`` elements, blocks floor(r nb/W) to floor((r+1) nb/W)."""
        blocks = -(-self.numel // alignment)
        low = min(self.numel, rank * blocks // world * alignment)
        high = min(self.numel, (rank + 1) * blocks // world * alignment)
        return self.piece(low, high)


class Layout:
    """Ordered segments within ``[0, numel)``; what no segment covers is padding. Immutable and hashable.

    Equal layouts are one object: tables are looked up by layout many times per bucket, and objects that are compared
    and hashed by their identity cost no call.

    >>> layout = Layout.of([("weight", (2, 3)), ("bias", (2,))])
    >>> [(s.name, s.start, s.stop) for s in layout.segments], layout.numel
    ([('weight', 0, 6), ('bias', 6, 8)], 8)
    """

    segments: tuple[Segment, ...]
    numel: int

    _known: ClassVar[WeakValueDictionary[tuple[tuple[Segment, ...], int], Layout]] = WeakValueDictionary()
    _lock: ClassVar[Any] = RLock()
    """Entered again where a signal's handler, or a finalizer, makes a layout in the middle of another's making."""

    def __new__(cls, segments: Iterable[Segment], numel: int | None = None) -> Layout:
        segments = tuple(segments)
        end = max((s.stop for s in segments), default=0)
        key = segments, end if numel is None else numel
        try:
            found = cls._known.get(key)
        except TypeError:
            raise TypeError(f"Layout: a shape is no tuple of integers in {segments}. Give tuples.") from None
        if found is not None:
            return found
        made = super().__new__(cls)
        made.segments, made.numel = key
        made._check(end)
        with cls._lock:  # sessions lay their buckets out in several threads
            return cls._known.setdefault(key, made)

    def __reduce__(self) -> tuple[type[Layout], tuple[tuple[Segment, ...], int]]:
        return Layout, (self.segments, self.numel)

    def _check(self, end: int) -> None:
        numel = self.numel
        if end > numel:
            raise ValueError(
                f"Layout(numel={numel}): a segment ends at element {end}, beyond the buffer. Give numel={end} or more, "
                f"or leave it out."
            )
        for s in self.segments:
            if not all(isinstance(n, Integral) for n in (s.start, s.stop, s.offset, *s.shape)):
                raise TypeError(f"Layout: {s} has places or a shape that are no integers. Count elements, as integers.")
            if not 0 <= s.start <= s.stop or s.offset < 0 or s.offset + s.numel > prod(s.shape):
                raise ValueError(
                    f"Layout: {s} does not fit its parameter of {prod(s.shape)} elements. It needs 0 <= start <= stop "
                    f"and, within the parameter, 0 <= offset and offset + stop - start <= {prod(s.shape)}."
                )
        placed = sorted((s.start, s.stop, s.name) for s in self.segments if s.numel)
        for (_, stop, a), (start, _, b) in pairwise(placed):
            if start < stop:
                raise ValueError(
                    f"Layout: {a!r} ends at element {stop} and {b!r} begins at {start}: they overlap. Give each "
                    f"element of the buffer to one segment, as Layout.of(...) does."
                )

    @classmethod
    def of(cls, shapes: Iterable[tuple[str, Iterable[int] | Tensor]]) -> Layout:
        """Whole parameters, one after the other: given a tensor, of its shape and in the order of its strides; given a
        shape, row-major.

        Raises:
            TypeError: something else than pairs of a name and a shape or tensor.
        """
        segments: list[Segment] = []
        start = 0
        for name, shape in _pairs(shapes):
            order = storage_order(shape) if isinstance(shape, Tensor) else ()
            size = tuple(int(n) for n in (shape.shape if isinstance(shape, Tensor) else shape))
            segments.append(Segment(name, size, start, start + prod(size), 0, order))
            start += prod(size)
        return cls(segments, start)

    def __repr__(self) -> str:
        return f"Layout({len(self.segments)} segments, {self.numel} elements)"

    @cached_property
    def covers(self) -> bool:
        """Whether the segments fill the buffer in order, without padding."""
        position = 0
        for s in self.segments:
            if s.start != position:
                return False
            position = s.stop
        return position == self.numel

    @cached_property
    def _places(self) -> dict[str, list[Segment]]:
        places: dict[str, list[Segment]] = {}
        for s in self.segments:
            places.setdefault(s.name, []).append(s)
        return places

    def position(self, segment: Segment) -> int:
        """Where in this buffer the parameter elements of ``segment`` begin, or -1 when they are not all here."""
        for s in self._places.get(segment.name, ()):
            inside = segment.offset - s.offset
            if inside >= 0 and inside + segment.numel <= s.numel:
                return s.start + inside
        return -1

    def select(self, keep: Callable[[Segment], bool]) -> Layout:
        """The segments that ``keep`` accepts, where they are."""
        return Layout((s for s in self.segments if keep(s)), self.numel)

    def packed(self) -> Layout:
        """The same segments, moved together."""
        return self._packed

    @cached_property
    def _packed(self) -> Layout:
        segments: list[Segment] = []
        start = 0
        for s in self.segments:
            segments.append(s._replace(start=start, stop=start + s.numel))
            start += s.numel
        return Layout(segments, start)

    @cached_property
    def row_major(self) -> Layout:
        """This layout with every parameter in row-major order, as reducers see it; itself, where all are so already.
        ``Bucket.rearrange_`` moves the elements.

        Raises:
            ValueError: it has a piece of a parameter that lies otherwise: pieces cannot be turned.
        """
        if not any(s.order for s in self.segments):
            return self
        for s in self.segments:
            if s.order and not s.whole:
                raise ValueError(
                    f"{self!r}: {s.name!r} lies in order {s.order} and only elements {s.offset} to "
                    f"{s.offset + s.numel} of it are here. Cut parameters that are stored row-major, or hold it whole."
                )
        return Layout((s._replace(order=()) for s in self.segments), self.numel)

    def rows(self, world: int) -> tuple[Layout, ...] | None:
        """This buffer as ``world`` equal rows, one per owner, as sharded hosts lay it out; None if one crosses."""
        rows = self._rows.get(world)
        if rows is None:
            rows = self._rows[world] = self._cut(world)
        return rows or None

    def equal_rows(self, world: int) -> tuple[Layout, ...]:
        """``rows``, which there must be.

        Raises:
            ValueError: there are none.
        """
        rows = self.rows(world)
        if rows is None:
            raise ValueError(
                f"{self!r} is not made of {world} equal rows, one per rank, which no segment crosses. Lay it out as "
                f"Layout.sharded({world}) does, or ask for the whole mean."
            )
        return rows

    def row(self, world: int, rank: int) -> Layout:
        """The row of one owner, as a buffer of its own.

        Raises:
            ValueError: as ``equal_rows``.
        """
        found = self._own.get((world, rank))
        if found is None:
            size, segments = self.numel // world, self.equal_rows(world)[rank].segments
            moved = (s._replace(start=s.start - rank * size, stop=s.stop - rank * size) for s in segments)
            found = self._own[world, rank] = Layout(moved, size)
        return found

    @cached_property
    def _own(self) -> dict[tuple[int, int], Layout]:
        return {}

    @cached_property
    def _rows(self) -> dict[int, tuple[Layout, ...]]:
        return {}

    def _cut(self, world: int) -> tuple[Layout, ...]:
        if world < 1 or self.numel % world:
            return ()
        size = self.numel // world
        groups: list[list[Segment]] = [[] for _ in range(world)]
        for s in self.segments:
            if s.numel and s.start // size != (s.stop - 1) // size:
                return ()
            groups[min(s.start // size, world - 1) if size else 0].append(s)
        return tuple(Layout(group, self.numel) for group in groups)

    def sharded(self, world: int) -> Layout:
        """Whole parameters as ``fully_shard`` lays their gradients out for a reduce-scatter: ``world`` equal rows, row
        r with shard r of every parameter, which is rows ``[r h, (r + 1) h)`` of its first dimension d0, h = ceil(d0 /
        world). The last shards may have fewer, or none; what lacks is padding, so that all rows are equally long.

        >>> first, second = Layout.of([("weight", (3, 2))]).sharded(2).segments
        >>> first.start, first.stop, first.offset, second.start, second.stop, second.offset
        (0, 4, 0, 4, 6, 4)
        """
        heights = [-(-(s.shape[0] if s.shape else 1) // world) for s in self.segments]
        widths = [s.numel // (s.shape[0] if s.shape else 1) if s.numel else 0 for s in self.segments]
        length = sum(h * w for h, w in zip(heights, widths, strict=True))
        found: list[Segment] = []
        for rank in range(world):
            start = rank * length
            for s, height, width in zip(self.segments, heights, widths, strict=True):
                low, high = (min(s.numel, r * height * width) for r in (rank, rank + 1))
                if low < high:
                    found.append(Segment(s.name, s.shape, start, start + high - low, s.offset + low))
                start += height * width
        return Layout(found, world * length)


def joined(layouts: Iterable[Layout]) -> Layout:
    """All segments of several buffers, as one buffer after the other."""
    found: list[Segment] = []
    start = 0
    for layout in layouts:
        found += [s._replace(start=start + s.start, stop=start + s.stop) for s in layout.segments]
        start += layout.numel
    return Layout(found, start)


def _pairs(shapes: Any) -> Iterator[tuple[str, Any]]:
    try:
        for name, shape in shapes:
            if not isinstance(name, str) or isinstance(shape, str):
                break
            yield name, shape
        else:
            return
    except (TypeError, ValueError):  # no iterable, or none of pairs
        pass
    raise TypeError(
        f"Layout.of({type(shapes).__name__}): pairs of a name and a shape or tensor are needed, such as "
        f"model.named_parameters(), or dictionary.items()."
    )


def _unlock() -> None:
    Layout._lock = RLock()  # pyright: ignore[reportPrivateUsage]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock)  # another thread may have held it


class Bucket(NamedTuple):
    """A flat tensor with its layout."""

    flat: Tensor
    layout: Layout

    def views(self) -> dict[str, Tensor]:
        """Each whole parameter in its shape, a piece as a vector; all alias ``flat``.

        Raises:
            ValueError: a parameter has several pieces here, as in a sharded host's buffer.
        """
        found = {s.name: self.view(s) for s in self.layout.segments}
        if len(found) < len(self.layout.segments):
            names = [s.name for s in self.layout.segments]
            twice = next(n for n in names if names.count(n) > 1)
            raise ValueError(
                f"Bucket.views(): parameter {twice!r} has several pieces here. Use view(segment) for each segment in "
                f"layout.segments."
            )
        return found

    def view(self, segment: Segment) -> Tensor:
        """The elements of one segment of this layout."""
        part = self.flat[segment.start : segment.stop]
        return shaped(part, segment.shape, segment.order) if segment.whole else part

    def rearrange_(self, source: Bucket) -> None:
        """Takes the values of a bucket that differs in nothing but the orders of its whole segments (and dtype)."""
        table, turns, others, spans = _ways(self.layout, source.layout)
        fast = bool(turns) and self.flat.dtype == source.flat.dtype == torch.float32
        if fast:
            torch.ops.compcomm.turn(self.flat, source.flat, table)
        for s, other in others if fast else (*turns, *others):
            self.view(s).copy_(source.view(other))
        for start, stop in spans:
            self.flat[start:stop].copy_(source.flat[start:stop])

    def fill_(self, value: float) -> None:
        """Sets every element of every segment; padding keeps its content."""
        if self.layout.covers:
            self.flat.fill_(value)
        else:
            for s in self.layout.segments:
                self.flat[s.start : s.stop].fill_(value)


Pairs = tuple[tuple[Segment, Segment], ...]


@lru_cache(maxsize=4096)
def _ways(layout: Layout, source: Layout) -> tuple[Tensor, Pairs, Pairs, tuple[tuple[int, int], ...]]:
    """How values get from one order to another: the table of what is turned, those segments, others that move, and the
    spans that stay as they are."""
    lines: list[tuple[int, ...]] = []
    turns: list[tuple[Segment, Segment]] = []
    others: list[tuple[Segment, Segment]] = []
    spans: list[tuple[int, int]] = []
    position = 0
    for s, other in zip(layout.segments, source.segments, strict=True):
        if s.order == other.order:
            continue
        found = turned(s.shape, s.order or other.order) if not (s.order and other.order) else None
        if found is None:
            others.append((s, other))
        else:
            count, rows, columns = found if other.order else (found[0], found[2], found[1])
            lines.append((s.start, other.start, count, rows, columns))
            turns.append((s, other))
        spans.append((position, s.start))
        position = s.stop
    spans.append((position, layout.numel))
    table = torch.tensor(lines, dtype=torch.int64).view(-1, 5)
    return table, tuple(turns), tuple(others), tuple(span for span in spans if span[0] < span[1])
