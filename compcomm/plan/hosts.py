"""What averages gradients, as a plan sees it: DDP, or DDP on nodes of several ranks (sharded: ``sharded_hosts``)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch

from ..core.layout import Layout
from ..core.reducer import Reducer
from ..routes.within import deal
from ..transports.dry_run import Planned, dense_bytes
from . import cost
from .kernels import Kernels, copying
from .link import Link
from .methods import UNCOMPRESSED, Baselines, Method, default
from .step import FORWARD, Prediction, predict, timed


class Setting(NamedTuple):
    """What a step is predicted for. ``workers``: all ranks there are. ``link``: of each of them, or of each node.
    ``kernels``: the method's. ``compute``: seconds of forward and backward pass, of which ``forward`` is the former's
    part. ``dtype``: of the gradients."""

    workers: int
    link: Link
    kernels: Kernels = Kernels()
    compute: float = 0.0
    forward: float = FORWARD
    dtype: torch.dtype = torch.float32


class Host(ABC):
    """What holds the model and averages its gradients, by a method of ours or as it is."""

    plain: ClassVar[str]
    """What averages where no method of ours does."""
    per: ClassVar[str] = "rank"
    """Whose bytes are counted."""
    rows: ClassVar[bool] = False
    """Whether each rank wants its own row of the means alone."""

    @property
    def pieces(self) -> tuple[str, str]:
        """How one and several of what a step's exchanges are cut into are called."""
        return "bucket", "buckets"

    @property
    def arguments(self) -> str:
        """What else the line says that attaches a method."""
        return ""

    @property
    def comment(self) -> str:
        """What stands behind that line: how the model has to be made for it."""
        return ""

    @property
    def better(self) -> tuple[Host, str] | None:
        """This host with an option that a plan should speak of, and the words that ask for it."""
        return None

    @property
    def baselines(self) -> Baselines:
        """What a method must beat."""
        return UNCOMPRESSED

    def methods(self) -> tuple[Method, ...]:
        """Those that plans compare."""
        return default()

    def check(self, workers: int) -> None:  # noqa: B027  (most take any number)
        """Raises ValueError where so many workers cannot be planned for."""

    def world(self, workers: int) -> int:
        """How many a reducer averages over."""
        return workers

    def seen(self, buckets: Sequence[Layout]) -> tuple[Layout, ...]:
        """What of the buckets a reducer's kernels are timed on."""
        return tuple(buckets)

    def resolved(self, method: Method, workers: int) -> Reducer | None:
        """A method with its routes chosen.

        Raises:
            ValueError: it has no form for this host.
        """
        return method.resolved(self.world(workers), self.rows)

    @abstractmethod
    def predict(self, method: Method, buckets: Sequence[Layout], at: Setting) -> Prediction:
        """A step with ``buckets`` in the order of the backward pass, of whole parameters."""

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"host": type(self).__name__}

    def __str__(self) -> str:
        return ""


@dataclass(frozen=True)
class DDP(Host):
    """DistributedDataParallel: all workers average every bucket."""

    plain: ClassVar[str] = "DDP"

    def predict(self, method: Method, buckets: Sequence[Layout], at: Setting) -> Prediction:
        return flat(self.resolved(method, at.workers), buckets, at)


def flat(reducer: Reducer | None, layouts: Sequence[Layout], at: Setting, **more: Any) -> Prediction:
    """``compcomm.plan.step.predict`` among all workers."""
    return predict(
        reducer, layouts, at.workers, at.link, at.kernels, at.compute, forward=at.forward, dtype=at.dtype, **more
    )  # fmt: skip


@dataclass(frozen=True)
class TwoLevels(Host):
    """Nodes of ``ranks_per_node``, between which a reducer averages. The plan's link is a node's, which all its ranks
    share; ``inside``: the link of a rank to the others of its node."""

    ranks_per_node: int
    inside: Link
    per: ClassVar[str] = "node"

    def __post_init__(self) -> None:
        per = self.ranks_per_node
        if isinstance(per, bool) or not isinstance(per, int) or per < 2:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(
                f"plan(ranks_per_node={per!r}): an integer, 2 or more; with one, plan for the ranks alone."
            )

    def check(self, workers: int) -> None:
        per = self.ranks_per_node
        if workers % per or workers < 2 * per:
            raise ValueError(
                f"plan(workers={workers}, ranks_per_node={per}): two nodes or more, with equally many ranks: give "
                f"{2 * per}, {3 * per}, ... workers."
            )

    def world(self, workers: int) -> int:
        return workers // self.ranks_per_node

    def within(self, kind: str, nbytes: int) -> float:
        """Seconds of one collective among the ranks of a node, of a buffer that long in all."""
        per = self.ranks_per_node
        return cost.seconds(Planned(kind, "uint8", nbytes, nbytes * (per - 1) // per), per, self.inside)

    def as_dict(self) -> dict[str, Any]:
        return {**super().as_dict(), "ranks_per_node": self.ranks_per_node, "inside": self.inside.as_dict()}


@dataclass(frozen=True)
class Nodes(TwoLevels):
    """DDP by ``attach(..., between="nodes")``: exact among the ranks of a node, a reducer between nodes.

    Every parameter is owned by one rank of the node. Between nodes a bucket's bytes are those of all owners together,
    since they share the node's link; to code it takes as long as the rank takes that owns the largest part of it.
    Without a hook one ring goes through all ranks, and over every node's link once: those are the dense bytes.

    ``copying``: seconds for each byte that is summed or copied on this machine.
    """

    copying: float = 0.0
    plain: ClassVar[str] = "DDP"

    @property
    def arguments(self) -> str:
        return ', between="nodes"'

    @classmethod
    def of(cls, ranks_per_node: int, inside: Link) -> Nodes:
        """On this machine."""
        return cls(ranks_per_node, inside, copying())

    def predict(self, method: Method, buckets: Sequence[Layout], at: Setting) -> Prediction:
        reducer = self.resolved(method, at.workers)
        if reducer is None:
            return flat(None, buckets, at)
        nodes, per, stretch = self.world(at.workers), self.ranks_per_node, at.kernels.stretch
        every = [s for layout in buckets for s in layout.segments]
        owners = deal([(s.name, s.numel) for s in reversed(every)], per)
        stages: list[list[float]] = []
        wires: list[list[float]] = []
        sent = 0
        for layout, planned in zip(buckets, cost.traffic(reducer, tuple(buckets), nodes, at.dtype), strict=True):
            own = [0] * per
            for s in layout.segments:
                own[owners[s.name]] += s.numel
            largest = max(own) / max(1, sum(own))
            nbytes = at.dtype.itemsize * sum(own)
            between = [cost.seconds(p, nodes, at.link) for p in planned]
            coding = [largest * t for t in at.kernels.seconds(reducer, layout, nodes)]
            moved = self.copying * nbytes  # one pass to send and sum, another to send and take the means
            there, back = self.within("AllToAll", nbytes), self.within("AllGather", nbytes)
            stages.append([t * stretch for t in (0.0, moved + coding[0], *coding[1:], moved)])
            wires.append([t * stretch for t in (there, *between, back)])
            sent += sum(p.sent for p in planned)
        dense = dense_bytes(sum(s.numel for s in every), at.workers)
        return timed(reducer, stages, wires, at.compute, at.forward, sent, dense)

    def __str__(self) -> str:
        return f" on nodes of {self.ranks_per_node} (inside: {self.inside})"
