"""attach: one line that gives a model of DistributedDataParallel or fully_shard a reducer."""

from __future__ import annotations

import sys
import weakref
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from ..core.compressor import Compressor
from ..core.layout import Layout
from ..core.reducer import Reducer
from ..engine.attachment import Attachment
from .announce import announce, held, within_nodes
from .attach_sharded import attach_sharded
from .auto import Auto
from .ddp import DDPState, ddp_hook
from .fsdp_internals import Unit, units
from .joining import decline
from .nodes import group_between
from .sharded import check_whole


def attach(
    model: nn.Module,
    reducer: Reducer | Compressor | Auto,
    *,
    between: str | dist.ProcessGroup | DeviceMesh | None = None,
    inside: Compressor | None = None,
    weights: Compressor | None = None,
    group: dist.ProcessGroup | None = None,
    timeout: timedelta | float | None = None,
    scaler: Any = None,
    seed: int = 0,
    check_every: int = 0,
    optimizer: Any = None,
    discardable: bool = False,
) -> Attachment:
    """Averages ``model``'s gradients by ``reducer`` from now on. Every rank calls it, with equal arguments.

    ``cc.attach(DDP(model), cc.ErrorFeedback(cc.TopK(ratio=0.01)))``, or after ``fully_shard(model)``:
    ``cc.attach(model, cc.Rotated(cc.LloydMax(4)))``

    Prints one line on rank 0: the settled reducer, bytes per step and the bandwidth below which it should pay.

    Args:
        model: a DistributedDataParallel model without a hook, compiled or not; or one that ``fully_shard`` has taken,
            before its first forward pass (torch 2.9 or later): its reduce-scatters are compressed.
        between: of a model that is sharded inside nodes: the ranks of all nodes that hold the same shard, as the name
            of a dimension of the mesh, that dimension itself, a process group, or "nodes": the ranks that are as this
            one in their shards' groups. Shards are then averaged between nodes by ``reducer``, and nothing else is
            compressed. Of a DistributedDataParallel model: see ``DDPState``.
        weights: what codes the all-gathers of weights of a sharded model, such as ``QSGD(bits=8, rounding="nearest")``;
            None: they stay as they are.
        group: the ranks to average over; the model's own if None.
        reducer, inside, timeout, scaler, seed, check_every, optimizer, discardable: see ``DDPState``.

    Raises:
        TypeError: the model is neither, or has gradients that are no dense floating-point tensors.
        ValueError: the ranks differ in reducer, seed, version or parameters (``AgreementError``, on every rank), the
            model has a hook already, or the reducer has no form for rows of a mean.
    """
    ddp: Any = getattr(model, "_orig_mod", model)
    options: dict[str, Any] = {
        "scaler": scaler, "seed": seed, "check_every": check_every, "optimizer": optimizer, "discardable": discardable
    }  # fmt: skip
    try:
        found = _units(ddp)
        between = group_between(between)
        if found and inside is not None:
            raise ValueError(
                f"attach(inside={inside!r}): inside a node fully_shard itself exchanges, in the type that its "
                f"MixedPrecisionPolicy(reduce_dtype=...) says. Leave it out."
            )
    except Exception as error:
        decline(error, group, _device(ddp))
    if found:
        return attach_sharded(ddp, found, reducer, between, weights, group, timeout, options)
    group = group if group is not None else getattr(ddp, "process_group", None)
    if group is not None and not isinstance(group, dist.ProcessGroup):  # pyright: ignore[reportUnnecessaryIsInstance]
        given, group = group, getattr(ddp, "process_group", None)
        decline(TypeError(_no_group(given)), group, _device(ddp))
    try:
        _check(ddp)
        if weights is not None:
            raise ValueError(f"attach(weights={weights!r}): DistributedDataParallel gathers no weights. Leave it out.")
        state = DDPState(reducer, group=group, timeout=timeout, between=between, inside=inside, **options)
        state.name(ddp, "attach")
    except Exception as error:
        decline(error, group, _device(ddp))
    lines: list[str] = []

    def trial(settled: Reducer, everything: Layout) -> None:
        nodes = state.topology.nodes if state.topology is not None else ()
        world, kind = (len(nodes), "node") if nodes else (dist.get_world_size(state.group), "rank")
        if dist.get_rank(state.group) != 0:
            return
        if state.auto is None:
            ring = dist.get_world_size(state.group) if nodes else 0
            lines.append(announce(settled, everything, world, kind=kind, per=kind, ring=ring))
        else:
            lines.append(state.auto.announce(world, kind))

    attachment = state.open(_device(ddp), trial)
    ddp.register_comm_hook(state, ddp_hook)
    watch(ddp, attachment)
    for line in lines:
        if state.topology is not None:
            line += held(attachment.setup.store.nbytes()) + within_nodes(inside)
        print(line, file=sys.stderr, flush=True)
    return attachment


def _units(model: Any) -> list[Unit]:
    """Of a model that fully_shard has taken."""
    whole = isinstance(model, nn.parallel.DistributedDataParallel) or not isinstance(model, nn.Module)
    return [] if whole else units(model)


def watch(ddp: Any, attachment: Attachment) -> None:
    """Lets the model's next forward pass say that the attachment broke."""
    model_ref = weakref.ref(ddp)  # DDP holds the attachment where no garbage collector looks

    def check(module: nn.Module, inputs: object) -> None:
        attachment.check()

    def on_broken() -> None:
        broken = model_ref()
        if broken is not None:
            broken.register_forward_pre_hook(check)

    attachment.steps.on_broken = on_broken


def _no_group(given: object) -> str:
    return (
        f"attach(group={given!r}): this is no process group, or one that this rank is not in. Give what "
        f"torch.distributed.new_group(...) returned to one of its ranks, or None for the model's own."
    )


def _check(ddp: Any) -> None:
    if isinstance(ddp, nn.Module):
        check_whole("attach", ddp)
    if not isinstance(ddp, nn.parallel.DistributedDataParallel):
        raise TypeError(
            f"attach({type(ddp).__name__}): a DistributedDataParallel model is needed, model = "
            f"torch.nn.parallel.DistributedDataParallel(model), or one that fully_shard(model) has taken before."
        )
    check_free("attach", ddp)


def check_free(call: str, ddp: Any) -> None:
    """Raises ValueError where a DDP model has a communication hook."""
    hooks: list[Any] = getattr(ddp, "_comm_hooks", [])
    if hooks:
        ours = any(isinstance(state, DDPState) for _, state in hooks)
        what = "a compcomm reducer" if ours else f"the hook {getattr(hooks[0][0], '__qualname__', hooks[0][0])!r}"
        raise ValueError(
            f"{call}: this model has {what} already, and DDP takes one hook for good. Wrap the module in a new "
            f"DistributedDataParallel(...), or combine reducers with cc.Partition({{...}}) or cc.Warmup(...)."
        )


def _device(model: Any) -> torch.device:
    parameters = model.parameters() if isinstance(model, nn.Module) else ()
    return next((p.device for p in parameters), torch.device("cpu"))
