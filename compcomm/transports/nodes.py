"""A transport between nodes that knows the ranks inside its own."""

from __future__ import annotations

import torch

from ..core.collectives import INSIDE, Collective
from ..core.transport import Pending, Transport


class Nodes:
    """Rank ``between.rank`` of ``between.world`` nodes. Collectives among the ranks of this node (``axis``) go over
    ``inside``, all others between the nodes. ``seconds`` are those between nodes."""

    def __init__(self, between: Transport, inside: Transport) -> None:
        self.between, self.inside = between, inside

    @property
    def rank(self) -> int:
        """Which node."""
        return self.between.rank

    @property
    def world(self) -> int:
        """How many nodes."""
        return self.between.world

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.between.device

    @property
    def staged(self) -> bool:
        """See ``Transport``."""
        return self.between.staged or self.inside.staged

    @property
    def seconds(self) -> float:
        """How long a collective between nodes was on its way."""
        return self.between.seconds

    def start(self, op: Collective) -> Pending:
        """See ``Transport``."""
        return (self.inside if op.axis == INSIDE else self.between).start(op)

    def check(self) -> None:
        """See ``Transport``."""
        self.between.check()
        self.inside.check()

    def close(self) -> None:
        """Closes both."""
        self.between.close()
        self.inside.close()
