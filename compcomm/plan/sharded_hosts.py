"""Sharded models, as a plan sees them: ``fully_shard`` over all ranks, or inside nodes.

On the CPU, for which kernels are timed here, the host waits for all of it: a step is the sum of its parts. Buckets
stand for the units that a user's model is sharded by. Each gathers its weights before its forward and before its
backward pass. FSDP keeps what its root module has for itself, and gathers that once, so plans count a little more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, ClassVar

import torch

from ..compressors.qsgd import QSGD
from ..core.compressor import Compressor
from ..core.layout import Bucket, Layout
from ..core.packing import pack_rows
from ..core.random import Rng
from ..transports.dry_run import Planned, dense_bytes
from . import cost
from .hosts import Host, Setting, TwoLevels, flat
from .methods import HALF, PLAIN, POLICY, Baselines, Method, default, sharded
from .recommend import python
from .step import Prediction, timed

UNITS = "unit, which stands for your own", "units, which stand for your own"
GATHERS = 2
"""Of all weights in a step."""


@dataclass(frozen=True)
class FullyShard(Host):
    """``fully_shard`` (FSDP2): every rank wants its own row of the means, and all gather the weights.

    ``weights``: what codes the weights; ``coding``: seconds for each element of them, coded and decoded here. None:
    under a reducer they travel, as gradients do to it, in the bfloat16 of ``MixedPrecisionPolicy``. ``coded``: the host
    with ``weights``, of which a plan without them speaks.
    """

    weights: Compressor | None = None
    coding: float = 0.0
    coded: FullyShard | None = None
    plain: ClassVar[str] = "fully_shard"
    rows: ClassVar[bool] = True

    @classmethod
    def of(cls, weights: Compressor | None, workers: int) -> FullyShard:
        """On this machine."""
        if weights is None:
            return cls(coded=cls.of(QSGD(bits=8, rounding="nearest"), workers))
        return cls(weights, _coding(weights, workers))

    @property
    def pieces(self) -> tuple[str, str]:
        return UNITS

    @property
    def baselines(self) -> Baselines:
        return Baselines((PLAIN.text,), (HALF.text,))

    @property
    def better(self) -> tuple[Host, str] | None:
        return None if self.coded is None else (self.coded, f'--weights "{self.coded.weights!r}" codes the weights too')

    def methods(self) -> tuple[Method, ...]:
        return sharded(exact=self.weights is not None)

    @property
    def arguments(self) -> str:
        return "" if self.weights is None else f", weights={python(repr(self.weights))}"

    @property
    def comment(self) -> str:
        return f"  # {POLICY}" if self.weights is None else ""

    def check(self, workers: int) -> None:
        if workers > cost.EXACT:
            raise ValueError(f"plan(workers={workers}): of sharded models up to {cost.EXACT} are planned for.")

    def predict(self, method: Method, buckets: Sequence[Layout], at: Setting) -> Prediction:
        reducer, workers = self.resolved(method, at.workers), at.workers
        c = None if reducer is None else self.weights
        if method == HALF or (reducer is not None and c is None):
            at = at._replace(dtype=torch.bfloat16)
        units = [layout.sharded(workers) for layout in buckets]
        gradients = flat(reducer, units, at, rows=True, waits=True)
        shards = [u.numel // workers for u in units]
        each = (
            [n * at.dtype.itemsize for n in shards]
            if c is None
            else [max(pack_rows(c, u, u, workers).splits) for u in units]
        )
        gathers = [Planned("AllGather", "uint8", workers * n, (workers - 1) * n) for n in each]
        stretched = GATHERS * at.kernels.stretch
        wire = stretched * sum(cost.seconds(p, workers, at.link) for p in gathers)
        coded = 0.0 if c is None else stretched * self.coding * sum(u.numel for u in units)
        return Prediction(
            gradients.method, gradients.seconds + wire + coded, gradients.exposed + wire + coded,
            gradients.kernels + coded, gradients.wire + wire, gradients.sent + GATHERS * sum(p.sent for p in gathers),
            gradients.dense + GATHERS * (workers - 1) * 4 * sum(shards),
        )  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        return {**super().as_dict(), "weights": None if self.weights is None else repr(self.weights)}

    def __str__(self) -> str:
        if self.weights is None:
            return " with fully_shard, under a reducer with weights in bfloat16 (MixedPrecisionPolicy)"
        return f" with fully_shard, under a reducer with weights by {self.weights!r}"


@dataclass(frozen=True)
class HSDP(TwoLevels):
    """``fully_shard`` inside nodes, ``attach(..., between="replicate")`` between them.

    FSDP gathers weights and reduce-scatters gradients inside a node, in fp32. The shards of the sums are averaged
    between nodes, by a reducer that sees parameters of a shard's shape, or without a hook by FSDP's own all-reduce: all
    ranks of a node at the same time, each its shards, over the link that they share. Dense bytes are those of that
    all-reduce.
    """

    plain: ClassVar[str] = "fully_shard on both dimensions of the mesh"

    @property
    def pieces(self) -> tuple[str, str]:
        return UNITS

    @property
    def arguments(self) -> str:
        return ', between="replicate"'

    def methods(self) -> tuple[Method, ...]:
        return tuple(m._replace(short="fully_shard without a hook") if m == PLAIN else m for m in default())

    def seen(self, buckets: Sequence[Layout]) -> tuple[Layout, ...]:
        """The first rank's shards, the largest."""
        return tuple(layout.sharded(self.ranks_per_node).row(self.ranks_per_node, 0) for layout in buckets)

    def predict(self, method: Method, buckets: Sequence[Layout], at: Setting) -> Prediction:
        reducer, nodes, per = self.resolved(method, at.workers), self.world(at.workers), self.ranks_per_node
        shards = self.seen(buckets)
        stages: list[list[float]] = []
        wires: list[list[float]] = []
        sent = 0
        for shard, planned in zip(shards, cost.traffic(reducer, shards, nodes, at.dtype), strict=True):
            whole = at.dtype.itemsize * shard.numel * per
            together = [p._replace(nbytes=per * p.nbytes, sent=per * p.sent) for p in planned]
            between = [cost.seconds(p, nodes, at.link) for p in together]
            inside = self.within("ReduceScatter", whole) + GATHERS * self.within("AllGather", whole)
            stages.append([t * at.kernels.stretch for t in at.kernels.seconds(reducer, shard, nodes)])
            wires.append([t * at.kernels.stretch for t in (inside, *between)])
            sent += sum(p.sent for p in together)
        dense = per * dense_bytes(sum(shard.numel for shard in shards), nodes)
        return timed(reducer, stages, wires, at.compute, at.forward, sent, dense, waits=True)

    def __str__(self) -> str:
        return f" with fully_shard inside nodes of {self.ranks_per_node} (inside: {self.inside})"


@torch.no_grad()
def _coding(c: Compressor, workers: int, numel: int = 1 << 21) -> float:
    """Seconds for each element to code a rank's row of it and to decode all rows."""
    layout, rng = Layout.of([("sample", (numel >> 10, 1 << 10))]), Rng()
    best = [float("inf")] * 2
    flat = torch.randn(numel, dtype=torch.float32, generator=torch.Generator().manual_seed(0))
    for _ in range(4):
        x = Bucket(flat.clone(), layout)
        since = perf_counter()
        payload = c.encode_(x, rng)
        middle = perf_counter()
        payload.decode_add_(x)
        best = [min(a, b) for a, b in zip(best, (middle - since, perf_counter() - middle), strict=True)]
    return (best[0] / workers + best[1]) / numel
