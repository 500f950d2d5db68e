"""Room to compute in: two vectors as long as the longest batch, cut as each batch's parameters are."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..core.compressor import ops
from ..core.strides import shaped
from .flat import Batch, Flat


class Workspace(NamedTuple):
    """A batch with the two vectors. ``span``: where it lies in a flat vector; ``numbers``: of its parameters."""

    batch: Batch
    span: slice
    numbers: range
    sizes: list[int]
    one: Tensor
    two: Tensor
    ones: list[Tensor]
    twos: list[Tensor]
    table: Tensor

    def norms(self, flat: Tensor) -> list[float]:
        """L2 norms of the parameters' parts of ``one`` or ``two``, in fp64 by one fixed tree: equal on all ranks."""
        found = torch.zeros(len(self.sizes), dtype=torch.float64, device=flat.device)
        ops.norms(flat, self.table, found)
        return found.tolist()

    def cut(self, flat: Tensor) -> list[Tensor]:
        """The batch's parameters in a flat vector of all of them."""
        return list(flat[self.span].split(self.sizes))


def workspaces(flat: Flat) -> list[Workspace]:
    """A workspace for each batch. All share the two vectors: one is in use at a time."""
    longest = max((b.stop - b.start for b in flat.batches), default=0)
    room = torch.zeros(2, longest, dtype=torch.float32, device=flat.device)
    found: list[Workspace] = []
    for batch in flat.batches:
        first = batch.parts[0].numbers[0]
        numbers = range(first, first + sum(len(part.numbers) for part in batch.parts))
        sizes = [flat.params[n].numel() for n in numbers]
        one, two = room[0, : batch.stop - batch.start], room[1, : batch.stop - batch.start]
        starts = [flat.starts[n] - batch.start for n in numbers]
        table = [(s, s, size, i) for i, (s, size) in enumerate(zip(starts, sizes, strict=True))]
        lies = [flat.layout.segments[n] for n in numbers]
        views = [[shaped(t, s.shape, s.order) for s, t in zip(lies, v.split(sizes), strict=True)] for v in (one, two)]
        rows = torch.tensor(table, dtype=torch.int64).to(flat.device)
        span = slice(batch.start, batch.stop)
        found.append(Workspace(batch, span, numbers, sizes, one, two, views[0], views[1], rows))
    return found
