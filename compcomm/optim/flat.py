"""An optimizer's parameters as one flat vector, cut into batches that are computed at once and buckets that travel.

Parameters lie end to end in the order of the groups, each as it lies in memory itself (``core/strides.py``), so that
kernels go through a ``channels_last`` weight and its moments as through any other. A batch is a run of whole parameters
of about ``MESSAGE`` elements; it is computed while the batches before it travel. A parameter longer than that is a
batch of its own, row-major, and travels in several buckets, cut at multiples of ``MESSAGE``, so that no block of a
compressor is cut in two.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..core.layout import Layout, Segment
from ..core.strides import Order, shaped

MESSAGE = 1 << 22
"""Elements of a bucket: 16 MiB of fp32, half a MiB of signs, which take 4.5 ms at 1 Gbit/s."""

Groups = Sequence[Sequence[tuple[str, nn.Parameter]]]


class Part(NamedTuple):
    """Consecutive parameters of one group: their numbers, themselves, where each begins in the flat vector, and in what
    order it lies there; no orders: all are row-major."""

    group: int
    numbers: list[int]
    params: list[nn.Parameter]
    starts: list[int]
    orders: list[Order]

    def pick(self, has_gradient: Sequence[bool] | None) -> Part:
        """Those that have a gradient; None: all have."""
        if has_gradient is None or all(has_gradient[n] for n in self.numbers):
            return self
        kept = [i for i, n in enumerate(self.numbers) if has_gradient[n]]
        rows = ([row[i] for i in kept] for row in (self.numbers, self.params, self.starts))
        return Part(self.group, *rows, [self.orders[i] for i in kept] if self.orders else [])  # type: ignore[arg-type]

    def lying(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Tensors of the parameters' shapes (or of no elements) as views whose row-major order is the vector's."""
        if not self.orders:
            return tensors
        pairs = zip(tensors, self.orders, strict=True)
        return [t.permute(order) if order and t.dim() == len(order) else t for t, order in pairs]


class Batch(NamedTuple):
    """Whole parameters in elements ``[start, stop)`` of the flat vector, and the buckets in which they travel."""

    start: int
    stop: int
    parts: tuple[Part, ...]
    spans: tuple[tuple[int, int], ...]
    layouts: tuple[Layout, ...]


class Flat:
    """The plan of one flat vector."""

    def __init__(self, groups: Groups) -> None:
        self.named = [item for group in groups for item in group]
        self.params = [p for _, p in self.named]
        self.starts: list[int] = []
        self.numel = 0
        for p in self.params:
            self.starts.append(self.numel)
            self.numel += p.numel()
        self.device = self.params[0].device if self.params else torch.device("cpu")
        self.nothing = torch.empty(0, dtype=torch.float32, device=self.device)
        # What travels in pieces is row-major: pieces cannot be turned.
        self.layout = Layout.of((n, p if p.numel() <= MESSAGE else p.shape) for n, p in self.named)
        self.owners = owners = [g for g, group in enumerate(groups) for _ in group]
        self.parts = [self._part(g, [i for i, o in enumerate(owners) if o == g]) for g in range(len(groups))]
        self.batches: list[Batch] = []
        run: list[int] = []
        for i, p in enumerate(self.params):
            if run and self.starts[i] + p.numel() - self.starts[run[0]] > MESSAGE:
                self.batches.append(self._batch(run, owners))
                run = []
            run.append(i)
        if run:
            self.batches.append(self._batch(run, owners))

    @property
    def layouts(self) -> list[Layout]:
        """Of all buckets, in order."""
        return [layout for batch in self.batches for layout in batch.layouts]

    def zeros(self) -> Tensor:
        """A flat vector of fp32 zeros."""
        return torch.zeros(self.numel, dtype=torch.float32, device=self.device)

    def view(self, flat: Tensor, number: int) -> Tensor:
        """A parameter's elements, in its shape."""
        s = self.layout.segments[number]
        return shaped(flat[s.start : s.stop], s.shape, s.order)

    def views(self, flat: Tensor) -> list[Tensor]:
        """Every parameter's elements, each in its shape."""
        return [self.view(flat, i) for i in range(len(self.params))]

    def table(self) -> Tensor:
        """Rows (to, from, numel, index) of all parameters, for the kernels that work between two flat vectors."""
        rows = [(s, s, p.numel(), i) for i, (s, p) in enumerate(zip(self.starts, self.params, strict=True))]
        return torch.tensor(rows, dtype=torch.int64).view(-1, 4).to(self.device)

    def _part(self, group: int, numbers: list[int]) -> Part:
        orders = [self.layout.segments[i].order for i in numbers]
        params, starts = [self.params[i] for i in numbers], [self.starts[i] for i in numbers]
        return Part(group, numbers, params, starts, orders if any(orders) else [])

    def _batch(self, run: list[int], owners: list[int]) -> Batch:
        start, last = self.starts[run[0]], run[-1]
        stop = self.starts[last] + self.params[last].numel()
        groups = dict.fromkeys(owners[i] for i in run)
        parts = tuple(self._part(g, [i for i in run if owners[i] == g]) for g in groups)
        segments = [self.layout.segments[i] for i in run]
        if len(run) > 1 or stop - start <= MESSAGE:
            spans = ((start, stop),)
            layouts = (_moved(segments, start),)
        else:
            cuts = [*range(0, stop - start, MESSAGE), stop - start]
            pieces = [segments[0].piece(a, b) for a, b in pairwise(cuts)]
            spans = tuple((s.start, s.stop) for s in pieces)
            layouts = tuple(_moved([s], s.start) for s in pieces)
        return Batch(start, stop, parts, spans, layouts)


def _moved(segments: list[Segment], by: int) -> Layout:
    return Layout(s._replace(start=s.start - by, stop=s.stop - by) for s in segments)
