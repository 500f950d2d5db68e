"""The process group of a replicate dimension: gradients go through a reducer, all else to the group that was there."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ..core.state import StateError
from ..engine.attachment import Attachment
from .backward import graph_task
from .mesh_internals import Twin, work
from .mesh_steps import Steps
from .mesh_units import Named


class GradientGroup(Twin):
    """A process group in which an all-reduce of a gradient compresses: ``cc.mesh(...).get_group(dim)``.

    A gradient is one flat floating-point tensor that is summed or averaged (``SUM``, ``AVG``) inside a backward pass.
    Whatever else comes is an ordinary collective of the group it was made over: norms and flags after the pass,
    broadcasts, what DTensor sends, and other operations (``MAX``, ``PREMUL_SUM``) at any time. Once a model is bound,
    sums that other code has in its backward pass are told from gradients, too.
    """

    def __init__(self, made: Any, inner: dist.ProcessGroup, steps: Steps) -> None:
        super().__init__(made, inner)
        self._steps = steps

    def bind(self, model: nn.Module) -> Attachment:
        """Gives parameters their names and this rank's shapes, and returns the attachment: ``report()``,
        ``state_dict()``, ``enabled`` and the rest. Every rank calls it, after ``fully_shard`` or ``replicate`` and
        before the first backward pass. Prints one line on rank 0.

        Memory is keyed by name and has the shape of this rank's shards: 4/S bytes per parameter with S shards, for a
        scheme with one fp32 residual.

        Raises:
            StateError: gradients were averaged already, or nothing of the model is averaged over this group.
            AgreementError: the ranks hold different parameters, or one of them cannot take part.
        """
        if self._steps.attachment is not None:
            raise StateError(
                "bind: this group averages already, by the names that it began with. Bind one model, before its first "
                "backward pass."
            )
        try:
            if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(f"bind({type(model).__name__}): give the model that was sharded on this mesh.")
            units = Named(model, self)
        except Exception as error:
            self._steps.decline(error)
        found = self._steps.open(units)
        look: Any = torch.compiler.disable(partial(_look, self._steps))
        model.register_forward_pre_hook(look, prepend=True)
        return found

    @property
    def attachment(self) -> Attachment:
        """What ``bind`` returned; without ``bind``, what the first backward pass made.

        Raises:
            StateError: there has been neither.
        """
        if self._steps.attachment is None:
            raise StateError("attachment: nothing was averaged yet. Call bind(model), or ask after a backward pass.")
        return self._steps.attachment

    def allreduce(self, tensors: Any, *options: Any, **named: Any) -> Any:
        """As of any process group; the mean of a gradient comes by the reducer, in place, scaled by the number of ranks
        where the sum is asked for."""
        if graph_task() >= 0 and isinstance(tensors, list) and len(tensors) == 1 and options:
            flat, op = tensors[0], getattr(options[0], "reduceOp", None)
            scale = 1 if op == dist.ReduceOp.AVG else self.size() if op == dist.ReduceOp.SUM else 0
            if scale and flat.dim() == 1 and flat.is_floating_point() and flat.dtype.itemsize > 1:
                future = self._steps.average(flat, float(scale))
                if future is not None:
                    return work(future)
        return self.inner.allreduce(tensors, *options, **named)

    def shutdown(self) -> None:
        """Ends what averages; called by ``destroy_process_group``."""
        self._steps.close()

    abort = shutdown


def _look(steps: Steps, module: nn.Module, inputs: object) -> None:
    steps.check_forward()
