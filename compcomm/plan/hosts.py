"""What averages gradients, as a plan sees it: DDP, DDP on nodes of several ranks, or ``fully_shard``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any, ClassVar

import torch

from ..core.compressor import Compressor
from ..core.layout import Bucket, Layout
from ..core.packing import pack_rows
from ..core.random import Rng
from ..core.reducer import Reducer
from ..routes.within import deal
from ..transports.dry_run import Planned, dense_bytes
from . import cost
from .kernels import Kernels, copying
from .link import Link
from .methods import HALF, PLAIN, UNCOMPRESSED, Baselines, Method, default, sharded
from .recommend import python
from .step import FORWARD, Prediction, predict, timed


@dataclass(frozen=True)
class DDP:
    """DistributedDataParallel: all workers average every bucket."""

    plain: ClassVar[str] = "DDP"
    """What averages where no method of ours does."""
    per: ClassVar[str] = "rank"
    """Whose bytes are counted."""
    rows: ClassVar[bool] = False

    @property
    def arguments(self) -> str:
        """What else the line says that attaches a method."""
        return ""

    @property
    def baselines(self) -> Baselines:
        """What a method must beat."""
        return UNCOMPRESSED

    def methods(self) -> tuple[Method, ...]:
        """Those that plans compare."""
        return default()

    def check(self, workers: int) -> None:
        """Raises ValueError where so many workers cannot be planned for."""

    def world(self, workers: int) -> int:
        """How many a reducer averages over."""
        return workers

    def resolved(self, method: Method, workers: int) -> Reducer | None:
        """A method with its routes chosen.

        Raises:
            ValueError: it has no form for this host.
        """
        return method.resolved(self.world(workers), self.rows)

    def predict(
        self,
        method: Method,
        buckets: Sequence[Layout],
        workers: int,
        link: Link,
        kernels: Kernels,
        compute: float,
        forward: float = FORWARD,
        dtype: torch.dtype = torch.float32,
    ) -> Prediction:
        """A step: see ``compcomm.plan.step.predict``."""
        reducer = self.resolved(method, workers)
        return predict(reducer, buckets, workers, link, kernels, compute, forward=forward, dtype=dtype)

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"host": type(self).__name__}

    def __str__(self) -> str:
        return ""


@dataclass(frozen=True)
class Nodes(DDP):
    """DDP by ``attach(..., between="nodes")``: exact among the ranks of a node, a reducer between nodes.

    The plan's link is a node's, which all its ranks share. A bucket takes as long between nodes as the rank does that
    owns the largest part of it. Without a hook one ring goes through all ranks, and over every node's link once.

    ``inside``: the link of a rank to the others of its node. ``copying``: seconds for each byte that is summed or
    copied on this machine.
    """

    ranks_per_node: int = 1
    inside: Link = field(default_factory=partial(Link, 0.0, 1e12))
    copying: float = 0.0
    per: ClassVar[str] = "node"

    @property
    def arguments(self) -> str:
        return ', between="nodes"'

    @classmethod
    def of(cls, ranks_per_node: int, inside: Link) -> Nodes:
        """On this machine."""
        if isinstance(ranks_per_node, bool) or not isinstance(ranks_per_node, int) or ranks_per_node < 2:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"plan(ranks_per_node={ranks_per_node!r}): an integer, 2 or more; nodes of one are DDP.")
        return cls(ranks_per_node, inside, copying())

    def check(self, workers: int) -> None:
        per = self.ranks_per_node
        if workers % per or workers < 2 * per:
            raise ValueError(
                f"plan(workers={workers}, ranks_per_node={per}): two nodes or more, with equally many ranks: give "
                f"{2 * per}, {3 * per}, ... workers."
            )

    def world(self, workers: int) -> int:
        return workers // self.ranks_per_node

    def predict(
        self,
        method: Method,
        buckets: Sequence[Layout],
        workers: int,
        link: Link,
        kernels: Kernels,
        compute: float,
        forward: float = FORWARD,
        dtype: torch.dtype = torch.float32,
    ) -> Prediction:
        reducer = self.resolved(method, workers)
        if reducer is None:
            return predict(None, buckets, workers, link, kernels, compute, forward=forward, dtype=dtype)
        nodes, per = self.world(workers), self.ranks_per_node
        every = [s for layout in buckets for s in layout.segments]
        owners = deal([(s.name, s.numel) for s in reversed(every)], per)
        stages: list[list[float]] = []
        wires: list[list[float]] = []
        sent = 0
        for layout, planned in zip(buckets, cost.traffic(reducer, tuple(buckets), nodes, dtype), strict=True):
            own = [0] * per
            for s in layout.segments:
                own[owners[s.name]] += s.numel
            largest = max(own) / max(1, sum(own))
            nbytes = dtype.itemsize * sum(own)
            there, back = (
                cost.seconds(Planned(kind, "float32", nbytes, nbytes * (per - 1) // per), per, self.inside)
                for kind in ("AllToAll", "AllGather")
            )
            between = [cost.seconds(p, nodes, link) for p in planned]
            coding = [largest * t for t in kernels.seconds(reducer, layout, nodes)]
            moved = self.copying * nbytes  # one pass to send and sum, another to send and take the means
            stages.append([t * kernels.stretch for t in (0.0, moved + coding[0], *coding[1:], moved)])
            wires.append([t * kernels.stretch for t in (there, *between, back)])
            sent += sum(p.sent for p in planned)
        dense = dense_bytes(sum(s.numel for s in every), workers)
        return timed(reducer, stages, wires, compute, forward, sent, dense)

    def as_dict(self) -> dict[str, Any]:
        return {**super().as_dict(), "ranks_per_node": self.ranks_per_node, "inside": self.inside.as_dict()}

    def __str__(self) -> str:
        return f" on nodes of {self.ranks_per_node} (inside: {self.inside})"


@dataclass(frozen=True)
class FullyShard(DDP):
    """``fully_shard`` (FSDP2): every rank wants its own row of the means, and gathers all weights before a forward and
    before a backward pass.

    On the CPU, for which kernels are timed here, the host waits for all of it: a step is the sum of its parts. Buckets
    stand for the units that a model is sharded by.

    ``weights``: what codes the weights; ``coding``: seconds for each element of them, coded and decoded here.
    """

    weights: Compressor | None = None
    coding: float = 0.0
    plain: ClassVar[str] = "fully_shard"
    rows: ClassVar[bool] = True

    @classmethod
    def of(cls, weights: Compressor | None, workers: int) -> FullyShard:
        """On this machine."""
        return cls(weights, 0.0 if weights is None else _coding(weights, workers))

    @property
    def baselines(self) -> Baselines:
        return Baselines(UNCOMPRESSED.fp32 if self.weights is None else (PLAIN.text,), (HALF.text,))

    def methods(self) -> tuple[Method, ...]:
        return sharded()

    @property
    def arguments(self) -> str:
        return "" if self.weights is None else f", weights={python(repr(self.weights))}"

    def check(self, workers: int) -> None:
        if workers > cost.EXACT:
            raise ValueError(f"plan(workers={workers}): of sharded models up to {cost.EXACT} are planned for.")

    def predict(
        self,
        method: Method,
        buckets: Sequence[Layout],
        workers: int,
        link: Link,
        kernels: Kernels,
        compute: float,
        forward: float = FORWARD,
        dtype: torch.dtype = torch.float32,
    ) -> Prediction:
        reducer = self.resolved(method, workers)
        dtype = torch.bfloat16 if method == HALF else dtype
        units = [layout.sharded(workers) for layout in buckets]
        gradients = predict(
            reducer, units, workers, link, kernels, compute, forward=forward, dtype=dtype, rows=True, waits=True
        )  # fmt: skip
        fp32 = [4 * (u.numel // workers) for u in units]
        exact = [n * dtype.itemsize // 4 for n in fp32]
        c = None if reducer is None else self.weights
        each = exact if c is None else [max(pack_rows(c, u, u, workers).splits) for u in units]
        gathers = [Planned("AllGather", "uint8", workers * n, (workers - 1) * n) for n in each]
        wire = 2 * sum(cost.seconds(p, workers, link) for p in gathers)
        coded = 0.0 if c is None else 2 * self.coding * sum(u.numel for u in units)
        return Prediction(
            gradients.method, gradients.seconds + wire + coded, gradients.exposed + wire + coded,
            gradients.kernels + coded, gradients.wire + wire, gradients.sent + 2 * sum(p.sent for p in gathers),
            gradients.dense + 2 * (workers - 1) * sum(fp32),
        )  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        return {**super().as_dict(), "weights": None if self.weights is None else repr(self.weights)}

    def __str__(self) -> str:
        return f" with fully_shard{'' if self.weights is None else f', weights by {self.weights!r}'}"


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
