"""The hook of FullyShardedDataParallel (FSDP1), for compressors that need no memory.

``model.register_comm_hook(cc.FSDPState(cc.Cast(torch.bfloat16)), cc.fsdp_hook)``

FSDP1 hands every unit's gradients to one hook and does not say which unit's they are, in a flat buffer whose rows cut
parameters anywhere. So nothing can be remembered between steps, and blocks of elements are coded, whatever parameters
they are of. For feedback, and for all else that attachments have, shard by ``fully_shard``.
"""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from ..core.compressor import Compressor
from ..core.reducer import Reducer
from .functions import all_reduce, reduce_scatter, stateless


class FSDPState:
    """The state of ``fsdp_hook``: what codes gradients, and among which ranks.

    Args:
        compressor: one that loses little or nothing on average: ``Cast(torch.bfloat16)`` (16 bits on the wire, sums in
            fp32), ``QSGD(bits=8)``, ``Rotated(LloydMax(4))``. Bytes per rank: (W-1)/W c for a payload of c bytes.
        group: the model's ``process_group``; None: all ranks.

    Raises:
        ValueError: it remembers from step to step, or needs the parameters' names.
    """

    def __init__(self, compressor: Compressor | Reducer, group: dist.ProcessGroup | None = None) -> None:
        self.compressor, self.group = compressor, group
        try:
            stateless(f"FSDPState({compressor!r})", compressor, 2, rows=True)
        except ValueError as error:
            raise ValueError(
                f"{error} FullyShardedDataParallel does not say which unit a gradient is of: for feedback shard the "
                f"model by fully_shard, and attach(model, {compressor!r})."
            ) from None


def fsdp_hook(state: FSDPState, gradient: Tensor, output: Tensor | None = None) -> None:
    """Makes ``output`` this rank's part of the mean of ``gradient`` over the ranks; without one (NO_SHARD),
    ``gradient`` itself the mean.

    Raises:
        TypeError: the state is none.
        RuntimeError: the model is sharded over other ranks than the state's group.
    """
    if not isinstance(state, FSDPState):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"fsdp_hook: its state is {state!r}. Give register_comm_hook(cc.FSDPState(compressor), ...).")
    if output is None:
        all_reduce(gradient, state.compressor, state.group, op="mean")
        return
    world = dist.get_world_size(state.group)
    if gradient.numel() != world * output.numel():
        raise RuntimeError(
            f"fsdp_hook: {gradient.numel()} gradients make {output.numel()} per rank, and the group has {world} ranks. "
            f"Give the model's own: cc.FSDPState(compressor, model.process_group)."
        )
    reduce_scatter(output, gradient, state.compressor, state.group, op="mean")
