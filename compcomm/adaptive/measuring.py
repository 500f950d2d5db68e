"""What each parameter's gradient is measured by: its norm, and what every setting would lose of it and send."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..combine.setting import owner, tuned
from ..core.compressor import Compressor
from ..core.context import Context
from ..core.layout import Bucket, Layout, Segment
from ..core.random import key
from ..core.reducer import Reducer
from ..feedback import slabs
from .telemetry import Table

CHUNK = 1 << 22
"""Elements that are measured in one go: scratch memory is 16 MiB, whatever the model."""
SMALL = 128
"""The smaller side of a matrix whose singular values are all computed."""


class Layer(NamedTuple):
    """A parameter by name, with the pieces of it that the host has, whole or cut."""

    name: str
    pieces: tuple[Segment, ...]

    @property
    def numel(self) -> int:
        return sum(s.numel for s in self.pieces)


def layers(segments: Iterable[Segment]) -> tuple[Layer, ...]:
    """Segments by the name of their parameter, in the order of names."""
    found: dict[str, list[Segment]] = {}
    for s in segments:
        found.setdefault(s.name, []).append(s)
    return tuple(Layer(name, tuple(pieces)) for name, pieces in sorted(found.items()))


def dealt(every: Sequence[Layer], rank: int, world: int) -> list[int]:
    """The positions of the layers that ``rank`` measures: the largest first, each to whoever has least to do."""
    load = [0] * world
    mine: list[int] = []
    for i in sorted(range(len(every)), key=lambda i: (-every[i].numel, every[i].name)):
        least = min(range(world), key=lambda r: (load[r], r))
        load[least] += every[i].numel
        if least == rank:
            mine.append(i)
    return sorted(mine)


def sizes(part: Any, every: Sequence[Layer], settings: Sequence[float]) -> NDArray[np.int64]:
    """Bytes [m, P] of each layer's section at each setting."""
    found = np.zeros((len(every), len(settings)), np.int64)
    for j, value in enumerate(settings):
        c = tuned(_coder(part), value)
        for i, layer in enumerate(every):
            found[i, j] = sum(_bytes(c, s, value) for s in layer.pieces)
    return found


def measure(
    part: Any, given: Sequence[tuple[int, Segment, Tensor]], count: int, settings: Sequence[float], ctx: Context
) -> tuple[Table, Table]:
    """Squares [count, 1 + P] of the norm of each layer and of what each setting loses of it, zero where none is given;
    and the seconds [P] that each setting took.

    ``given``: (layer, piece, its gathered gradient). Compressors are measured by coding, PowerSGD by power iterations.
    """
    found, seconds = np.zeros((count, 1 + len(settings))), np.zeros(len(settings))
    coder = _coder(part)
    if isinstance(coder, Reducer):
        for i, segment, tensor in given:
            matrix = tensor.view(-1, prod(segment.shape[1:]))  # a shard of whole rows is one too
            found[i] += _low_rank(matrix, settings, key(ctx.seed, segment.name))
        return found, np.full(len(settings), np.nan)
    for chunk in _chunks(given):
        layout = _end_to_end([s for _, s, _ in chunk])
        rows = np.array([i for i, _, _ in chunk])
        flat, scratch = torch.cat([t for _, _, t in chunk]), torch.empty(layout.numel, dtype=torch.float32)
        found[:, 0] += np.bincount(rows, _squares(flat, layout), count)
        for j, value in enumerate(settings):
            scratch.copy_(flat)
            form: Compressor = tuned(coder, value)
            since = perf_counter()
            form.encode_(Bucket(scratch, layout), ctx.rng)
            seconds[j] += perf_counter() - since
            found[:, 1 + j] += np.bincount(rows, _squares(scratch, layout), count)
    return found, seconds


def _coder(part: Any) -> Any:
    """The compressor, with what it is wrapped in; or PowerSGD."""
    found = owner(part)
    while isinstance(found, Compressor) and not isinstance(part, Compressor):
        inner = getattr(part, "compressor", None)
        part = inner if isinstance(inner, Compressor) else part.reducer
    return part if isinstance(part, Compressor) else found


def _bytes(c: Any, s: Segment, value: float) -> int:
    if isinstance(c, Compressor):
        return -(-c.section(s.numel) // 4) * 4
    n, m, _ = c.sizes(s) or (s.shape[0], s.numel // s.shape[0], 0)
    return 4 * min(int(value), n, m) * (n + m)


def _chunks(given: Sequence[tuple[int, Segment, Tensor]]) -> Iterable[list[tuple[int, Segment, Tensor]]]:
    chunk: list[tuple[int, Segment, Tensor]] = []
    held = 0
    for item in given:
        if chunk and held + item[1].numel > CHUNK:
            yield chunk
            chunk, held = [], 0
        chunk.append(item)
        held += item[1].numel
    if chunk:
        yield chunk


def _end_to_end(segments: Sequence[Segment]) -> Layout:
    found: list[Segment] = []
    start = 0
    for s in segments:
        found.append(s._replace(start=start, stop=start + s.numel))
        start += s.numel
    return Layout(found, start)


def _squares(flat: Tensor, layout: Layout) -> Table:
    norms = slabs.norms(Bucket(flat, layout), Context())
    return np.square(norms.numpy())


def _low_rank(g: Tensor, ranks: Sequence[float], name: int) -> Table:
    """|G|^2 and |G - best rank r|^2 for every r, from the singular values."""
    most = int(max(ranks, default=0))
    total = float(g.square().sum(dtype=torch.float64))
    found = np.zeros(1 + len(ranks))
    found[0] = total
    if total == 0.0 or not ranks:
        return found
    small = min(g.shape) <= SMALL
    squares = _gram(g) if small else _iterated(g, most, torch.Generator().manual_seed(name & (1 << 62) - 1))
    kept = np.cumsum(np.maximum(squares, 0.0))
    found[1:] = [max(0.0, total - kept[min(int(rank), len(kept)) - 1]) for rank in ranks]
    return found


def _gram(g: Tensor) -> Table:
    """All squared singular values, largest first."""
    wide = (g if g.shape[0] <= g.shape[1] else g.T).double()
    return torch.linalg.eigvalsh(wide @ wide.T).flip(0).numpy()


def _iterated(g: Tensor, most: int, generator: torch.Generator, iterations: int = 4) -> Table:
    """The largest ones by power iterations on a few columns more than are asked for: a little below the truth, the
    more the slower they decay."""
    q = torch.randn(g.shape[1], min(most + 8, *g.shape), dtype=torch.float32, generator=generator)
    for _ in range(iterations):
        q = g.T @ torch.linalg.qr(g @ q)[0]
    return torch.linalg.svdvals(q).double().square().numpy()[:most]
