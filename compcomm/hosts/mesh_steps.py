"""The steps of gradients that come over a replicate dimension, and the session that averages them.

FSDP2 hands over one gradient per unit, inside the backward pass, and waits for it; it has no step of its own. A step
begins with the first gradient of a backward pass and ends when the pass does. Where another pass begins before, the one
that was open raised, and its step is given up.
"""

from __future__ import annotations

import sys
from datetime import timedelta
from time import perf_counter
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from ..core.layout import Bucket, Layout
from ..core.reducer import Reducer
from ..core.source import Source, Target
from ..core.state import StateError
from ..engine.agreement import agree
from ..engine.attachment import Attachment
from ..engine.host import Host
from ..engine.options import Options
from ..engine.pace import Kind
from .announce import announce
from .backward import as_it_is, graph_task, once_over
from .joining import connect
from .mesh_internals import recomputed
from .mesh_units import Numbered, Units

MESH = Host(
    call="mesh",
    make="take part",
    what="mesh",
    over="was closed with its process group. Make a new mesh, and shard a new model on it.",
    unnamed="Call mesh.get_group(dim).bind(model) before the first backward pass.",
    nameless="Call mesh.get_group(dim).bind(model) before the first backward pass.",
    unfinished="After an error, call model.reset_iter_state() (torch 2.13) and run one more backward pass on every "
    "rank, then call {call} again; or go back to the last checkpoint.",
    alike="Convert the parameters alike on every rank, before fully_shard(...).",
    alone="came in no all-reduce, so each replica trains its own.",
    regroup="Train before that, or make a new mesh, and shard a new model on it.",
)
"""How errors speak to who has a mesh."""


class Steps:
    """Averages the gradients of one replicate dimension, over ``group``. Made by all its ranks at once."""

    def __init__(
        self, group: dist.ProcessGroup, options: Options, device: torch.device, timeout: timedelta | None
    ) -> None:
        self.units: Units = Numbered()
        self.attachment: Attachment | None = None
        self._options = options
        self._transport = connect(group, device, timeout)
        self._pass = -1
        self._came: list[int] = []

    def decline(self, error: Exception) -> NoReturn:
        """Raises ``error`` on a rank that cannot open, after telling the ranks that are about to."""
        agree(self._transport, {}, error, host=MESH)
        raise error

    def open(self, units: Units) -> Attachment:
        """Makes the session for these units. Collective. With names it says on rank 0 what it will do."""
        lines: list[str] = []

        def trial(settled: Reducer, everything: Layout) -> None:
            lines.append(announce(settled, everything, self._transport.world, "compcomm, between replicas"))

        made = Attachment(
            self._transport, self._options, units.parameters, layouts=units.layouts,
            trial=trial if units.parameters is not None and dist.get_rank() == 0 else None,
        )  # fmt: skip
        self.units, self.attachment = units, made
        for line in lines:
            print(line, file=sys.stderr, flush=True)
        return made

    def average(self, flat: Tensor, scale: float) -> torch.futures.Future[Tensor] | None:
        """``scale`` times the mean of what an all-reduce hands over, in place; None where it is no unit's gradient."""
        this = graph_task()
        if this != self._pass and self._pass >= 0:  # that pass raised
            self._pass = -1
            self._came.clear()
            if self.attachment is not None:
                self.attachment.abandon_step()
        unit = self.units.find(flat, self._came)
        if unit is None:
            return None
        if recomputed():
            raise StateError(
                "mesh: a unit lies inside torch.utils.checkpoint.checkpoint(..., use_reentrant=True), whose backward "
                "pass is one of its own, so that steps cannot be told apart. Give use_reentrant=False."
            )
        attachment = self.attachment or self.open(self.units)
        kind = attachment.steps.pace.take(self._pass < 0, False)
        if kind is Kind.PART:
            raise StateError(
                f"passes = {attachment.passes}: FSDP2 adds gradients up by itself. Leave it at 1, and for all passes "
                f"but the last call model.set_requires_gradient_sync(False), or set_requires_all_reduce(False)."
            )
        if self._pass < 0:
            if kind.sent:
                attachment.begin_step(kind is Kind.STEP)
            self._pass = this
            once_over(self._end)
        self._came.append(unit)
        if not kind.sent:
            return as_it_is(flat.mul_(scale))
        bucket, since = Bucket(flat, self.units.layouts[unit]), perf_counter()
        future = attachment.submit(Source(bucket), Target(bucket, scale), now=True)
        future.wait()  # as FSDP2 does with what it gets; on a GPU its stream waits
        if attachment.steps.current is not None:
            attachment.steps.current.waited += perf_counter() - since
        return future

    def close(self) -> None:
        """Ends the session, and its threads."""
        (self._transport if self.attachment is None else self.attachment).close()

    def check_forward(self) -> None:
        """Raises StateError at a forward pass where the last backward pass raised and FSDP2 has not been told."""
        if self._pass >= 0 and graph_task() < 0 and not self.units.rest:
            raise StateError(
                "mesh: the last backward pass raised, and FSDP2 would go on as if it had not ended, and average "
                "nothing. Call reset_iter_state() on the outermost sharded module first (torch 2.13), on every rank; "
                "before 2.13, go back to the last checkpoint."
            )

    def _end(self) -> None:
        """A backward pass is over."""
        if self.attachment is None or self._pass < 0:
            return
        self._pass = -1
        self._came.clear()
        if self.attachment.steps.open:
            self.attachment.end_step()
