"""A few of a model's parameters, to measure in their place."""

from __future__ import annotations

from math import prod

from ..core.layout import Layout, Segment
from ..core.reducer import Reducer
from ..transports.dry_run import cost

_PIECE = 1 << 16
"""Elements: smaller parameters are never cut."""


def sample_layout(reducer: Reducer, layout: Layout, world: int, target: int, *, rows: bool = False) -> Layout:
    """Parameters with ``target`` elements in all or little more, whole but for the very large; coded and exact ones
    in the model's own proportion."""
    wanted = [s for s in layout.segments if s.numel]
    share = min(1.0, target / max(1, sum(s.numel for s in wanted)))
    taken: list[tuple[str, tuple[int, ...]]] = []
    for exact in (False, True):
        owed, before = 0.0, len(taken)
        group = [s for s in wanted if reducer.exact(s) is exact]
        for s in group:
            owed += s.numel * share
            size = min(s.numel, max(_PIECE, int(owed)))
            if 2 * owed >= size or (s is group[-1] and len(taken) == before):
                piece = _cut(reducer, s, world, size, rows)
                taken.append((s.name, piece))
                owed -= prod(piece)
    return Layout.of(taken)


def _cut(reducer: Reducer, segment: Segment, world: int, numel: int, rows: bool) -> tuple[int, ...]:
    """The first rows of a parameter, ``numel`` elements or more: enough for the reducer to treat them as it treats
    the whole (exact or coded, and not fewer than a fixed k)."""
    row = segment.numel // segment.shape[0] if segment.shape else 1
    while numel < segment.numel:
        shape = (-(-numel // row), *segment.shape[1:])
        piece = Layout.of([(segment.name, shape)])
        try:
            cost(reducer, piece, world, rows=rows)
            if reducer.exact(piece.segments[0]) is reducer.exact(segment):
                return shape
        except ValueError:
            pass
        numel *= 2
    return segment.shape
