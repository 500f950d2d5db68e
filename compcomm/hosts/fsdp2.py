"""Models of ``fully_shard`` (FSDP2): gradients are reduce-scattered in fewer bytes, weights gathered so.

What FSDP does around us: for each unit and backward pass it copies the unit's gradients into a buffer of W equal rows,
row r with shard r of every parameter, and asks an object (``set_custom_reduce_scatter``) for this rank's row of the
sum. We give it W times the mean of what the reducer sent, and leave the division to FSDP: whatever factor a user sets,
before or after attach, has its meaning (frameworks that count tokens set it to 1 and divide themselves).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..core.context import Arena
from ..core.layout import Bucket, Layout
from ..core.reducer import Reducer
from ..core.source import Source, Target
from ..core.transport import Transport
from ..engine.options import Options
from .fsdp_internals import Unit, is_default
from .joining import connect
from .names import check_dtype, plain
from .sharded_attachment import ShardedAttachment
from .sharded_steps import ShardedSteps
from .weights import CompressedAllGather, check_weights


class CompressedReduceScatter:
    """FSDP's reduce-scatter of one unit."""

    def __init__(self, unit: Unit, steps: ShardedSteps, world: int, rank: int) -> None:
        self._unit, self._steps, self._world, self._rank = unit, steps, world, rank

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Room for the unit's gradients, or for this rank's row."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: Any, op: Any, async_op: bool = False
    ) -> None:
        """Makes ``output_tensor`` this rank's row of the sum of ``input_tensor`` over the ranks."""
        if op != dist.ReduceOp.SUM:
            raise RuntimeError(
                f"attach: FSDP asks unit {self._unit.number} ({self._unit.names[0]}, ...) for {op} in place of a sum. "
                f"Leave set_force_sum_reduction_for_comms(True), which attach has called, as it is."
            )
        layout = self._unit.layout(self._world)
        row = layout.row(self._world, self._rank)
        if layout.numel != input_tensor.numel():
            wrong = of_another_size(self._unit, layout, input_tensor.numel())
            self._steps.fail(self._unit, layout, row, output_tensor, wrong)
            return
        self._steps.average(
            self._unit,
            Source(Bucket(input_tensor, layout)),
            Target(Bucket(output_tensor, row), float(self._world), row=True),
        )


def of_another_size(unit: Unit, layout: Layout, found: int) -> str:
    """What is wrong where a buffer has not the size that is due."""
    return (
        f"attach: the gradients of unit {unit.number} ({unit.names[0]}, ...) are {found} elements where its parameters "
        f"that want one have {layout.numel}: a parameter had no gradient in this pass, and which one cannot be told "
        f"(torch {torch.__version__}). Use every parameter in every pass, freeze those that are not used, or call "
        f"model.set_reduce_scatter_unused_params(True) (torch 2.13 or later), which takes zeros for them."
    )


def open_rows(
    model: nn.Module, units: Sequence[Unit], options: Options, timeout: timedelta | None, weights: Any, trial: Any,
    own: Transport, auto: object = None,
) -> ShardedAttachment:  # fmt: skip
    """An attachment that carries the reduce-scatters of all units over ``own``, and their all-gathers where ``weights``
    codes them. Collective over the ranks that hold the shards."""
    first = units[0]
    group = first.group
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    layouts = [layout for layout in (u.layout(world) for u in units) if layout.numel]
    facts = {"units": [u.names for u in units], "weights": repr(weights), "auto": repr(auto)}
    attachment = ShardedAttachment(
        own, options, trained(units), trial=partial(_trial, trial, layouts, world),
        layouts=layouts, facts=facts, rows=True,
    )  # fmt: skip
    steps = ShardedSteps(attachment, model, units, lambda u: u.layout(world))
    before = [(u, u.sums, u.comm("reduce_scatter"), u.comm("all_gather")) for u in units]
    transport = None
    if weights is not None:
        transport = connect(group, first.device, timeout, ring=True)
        arena = Arena(first.device)  # of its own: a session clears its own when it changes reducers
        attachment.gathers = [CompressedAllGather(u, weights, transport, arena, options.seed) for u in units]
    for u in units:
        u.set_comm("reduce_scatter", CompressedReduceScatter(u, steps, world, rank))
        if world > 1:  # alone, FSDP copies, and divides twice where it is to sum
            u.sums = True
    for u, gather in zip(units, attachment.gathers, strict=False):
        u.set_comm("all_gather", gather)

    def on_detach() -> None:
        steps.detach()
        if transport is not None:
            transport.close()
        for u, sums, reduce_scatter, all_gather in before:
            u.sums = sums
            u.set_comm("reduce_scatter", reduce_scatter)
            u.set_comm("all_gather", all_gather)

    attachment.on_detach = on_detach
    attachment.setup.unaveraged = partial(alone, model, units)
    attachment.setup.replicas = partial(in_no_unit, model, units)
    return attachment


def _trial(trial: Any, layouts: Sequence[Layout], world: int, reducer: Reducer, everything: Layout) -> None:
    """``trial`` on the rows of all units together."""
    trial(reducer, Layout.of({s.name: s.shape for layout in layouts for s in layout.segments}.items()).sharded(world))


def trained(units: Sequence[Unit]) -> list[tuple[str, nn.Parameter]]:
    """What the units average now, by name."""
    found = [(name, p) for u in units for name, p in zip(u.names, u.parameters, strict=True) if p.requires_grad]
    for name, p in found:
        check_dtype(name, p.dtype)
    return found


def in_no_unit(model: nn.Module, units: Sequence[Unit]) -> list[tuple[str, Tensor]]:
    """What is in no unit, and each rank has all of."""
    return [(name, p) for name, p in _outside(model, units) if not isinstance(p, DTensor)]


def alone(model: nn.Module, units: Sequence[Unit]) -> list[str]:
    """What trains in no unit, each rank its own."""
    return [name for name, p in _outside(model, units) if p.requires_grad]


def _outside(model: nn.Module, units: Sequence[Unit]) -> list[tuple[str, nn.Parameter]]:
    held = {name for u in units for name in u.names}
    return [(plain(name), p) for name, p in model.named_parameters() if plain(name) not in held]


def check_units(call: str, units: Sequence[Unit], weights: Any) -> None:
    """Whether all units can be attached to.

    Raises:
        TypeError, ValueError: which one cannot, and why.
    """
    if weights is not None:
        check_weights(weights)
    for u in units:
        where = f"unit {u.number} ({u.names[0]}, ...)"
        if u.several:
            raise ValueError(
                f"{call}: {where} has several parameter groups, over meshes of their own (shard_placement_fn). Shard "
                f"these modules apart."
            )
        if u.group is None:
            raise ValueError(f"{call}: {where} is not sharded, but replicated. Use DistributedDataParallel for that.")
        if u.replicated:
            raise ValueError(
                f"{call}: {where} is sharded over a two-dimensional mesh, where FSDP averages over replicas itself, "
                f"and sends everything. Shard over one dimension, fully_shard(module, mesh=mesh['shard']), and give "
                f"attach(..., between='replicate') the other; or build the mesh with cc.mesh(mesh, 'replicate', "
                f"reducer)."
            )
        if set(dist.get_process_group_ranks(u.group)) != set(dist.get_process_group_ranks(units[0].group)):
            raise ValueError(
                f"{call}: {where} is sharded over other ranks than unit 0 ({units[0].names[0]}, ...). Shard all "
                f"modules over one mesh."
            )
        for kind in ("reduce_scatter", "all_gather"):
            comm = u.comm(kind)
            if isinstance(comm, CompressedReduceScatter | CompressedAllGather):
                raise ValueError(
                    f"{call}: this model has a compcomm reducer already. Call detach() of the first attachment, or "
                    f"combine reducers with cc.Partition({{...}}) or cc.Warmup(...)."
                )
            if not is_default(comm) and (kind == "reduce_scatter" or weights is not None):
                raise ValueError(
                    f"{call}: {where} has {type(comm).__name__} for its {kind.replace('_', '-')} already "
                    f"(set_custom_{kind}, set_symm_mem_for_comm or set_allocate_memory_from_process_group). Leave one "
                    f"of the two out."
                )
        if u.begun:
            raise ValueError(
                f"{call}: {where} has had a forward pass. Attach right after fully_shard(...), before the first one."
            )
