"""A plan from inside a training run: its own link, its own buckets, its own compute time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from ..core.compressor import Compressor
from ..core.layout import Layout
from ..core.reducer import Reducer
from ..core.transport import Transport
from ..transports.nodes import Nodes as Levels
from .hosts import Nodes, Setting
from .kernels import calibrate
from .measure import measure
from .methods import HALF, PLAIN, Method, default, method, sharded
from .recommend import choose
from .step import Prediction, predict


class Proposal(NamedTuple):
    """Predictions by method, DDP without a hook first. ``measured``: seconds of a step that averages exactly."""

    methods: tuple[Method, ...]
    predictions: tuple[Prediction, ...]
    measured: float = float("inf")

    @property
    def plain(self) -> float:
        """Seconds of a step without compression: as it was measured, if that is less than predicted."""
        return min(self.measured, self.predictions[0].seconds)

    def pick(self, margin: float) -> int:
        """The position of the method to go on with; 0, DDP as it is, unless another saves more than ``margin``."""
        worth = [p for p in self.predictions[1:] if p.seconds < (1 - margin) * self.plain]
        return self.predictions.index(self.named(choose(worth).method)) if worth else 0

    def named(self, text: str) -> Prediction:
        """The prediction of a method."""
        return next(p for p in self.predictions if p.method == text)

    def why(self, picked: int) -> str:
        """One line about a pick."""
        plain, taken = self.predictions[0], self.predictions[picked]
        exposed = max(0.0, plain.exposed - (plain.seconds - self.plain))
        waits = f"a step of {1e3 * self.plain:.4g} ms waits {1e3 * exposed:.3g} ms for gradients"
        if picked:
            gain = f"predicted {1e3 * taken.seconds:.4g} ms ({self.plain / taken.seconds:.2f}x as fast)"
            return f"Auto picks {taken.method}: {waits} without compression; {gain}, {taken.ratio:.3g}x fewer bytes"
        if len(self.predictions) == 1:
            return f"Auto picks no compression: {waits}; none of the methods fits this model and its optimizer"
        best = min(self.predictions[1:], key=lambda p: p.seconds)
        saving = 100 * (1 - best.seconds / self.plain)
        rest = f"{best.method}, the best of {len(self.predictions) - 1}, would " + (
            f"save {saving:.1f} %" if saving > 0 else f"take {-saving:.1f} % longer"
        )
        return f"Auto picks no compression: {waits}; {rest}"


def propose(
    transport: Transport,
    layouts: Sequence[Layout],
    compute: float,
    methods: Sequence[Reducer | Compressor] | None = None,
    dtype: torch.dtype = torch.float32,
    measured: float = float("inf"),
    rows: bool = False,
    waits: bool = False,
) -> Proposal:
    """Measures the link and, on all ranks at the same time, the kernels; then predicts every method's step.

    Collective: every rank calls it between two steps, with the same arguments, and gets the same.

    Args:
        transport: between the workers; or between nodes, of which each has several.
        layouts: of the buckets, in the order in which a backward pass fills them.
        compute: seconds of forward and backward pass, equal on all ranks.
        dtype: of the gradients.
        measured: seconds of a step that averages exactly, equal on all ranks.
        methods: to be compared with the host as it is; None: those that plans compare.
        rows, waits: see ``predict``.
    """
    world, link = transport.world, measure(transport, rows)
    nodes = Nodes.of(transport.inside.world, measure(transport.inside)) if isinstance(transport, Levels) else None
    usual = default() if not rows else tuple(m for m in sharded() if m != HALF)
    chosen = (PLAIN, *map(method, methods)) if methods is not None else usual
    found: list[Prediction] = []
    for m in chosen:
        resolved = m.resolved(world, rows)
        kernels = calibrate(resolved, layouts, world, transport, link, rows)
        if nodes is None:
            prediction = predict(
                resolved, layouts, world, link, kernels, compute, dtype=dtype, rows=rows, waits=waits
            )  # fmt: skip
        else:  # the ranks of a node measured side by side: together they have what its link has
            per = nodes.ranks_per_node
            line = link.at(link.bandwidth * per)
            prediction = nodes.predict(m, layouts, Setting(world * per, line, kernels, compute, dtype=dtype))
        found.append(replace(prediction, method=m.text))
    return Proposal(chosen, tuple(found), measured)
