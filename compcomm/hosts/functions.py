"""Collectives of one tensor in fewer bytes, for whoever has no model to attach to: as those of ``torch.distributed``,
with a compressor.

    cc.all_reduce(tensor, cc.Cast(torch.float8_e4m3fn))             # like dist.all_reduce(tensor)
    cc.reduce_scatter(row, tensor, cc.Cast(torch.bfloat16))         # like dist.reduce_scatter_tensor(row, tensor)
    cc.all_gather(all, row, cc.QSGD(bits=8, rounding="nearest"))    # like dist.all_gather_into_tensor(all, row)

Every rank of the group calls them in the same order, with tensors of the same shape and equal compressors: nothing asks
whether that is so, and ranks that differ end as those of ``torch.distributed`` do. They return when the result is
there, and remember nothing from call to call: what is lost is lost, so use them where 8 bits or more go, or where
nothing adds up over the calls. A tensor that is not finite on one rank makes the result NaN on all.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from ..core.collectives import Collective
from ..core.compressor import Compressor
from ..core.context import Arena, Context
from ..core.deferred import raise_deferred
from ..core.drive import drive
from ..core.layout import Bucket, Layout
from ..core.packing import pack_rows
from ..core.reducer import Flow, Reducer, flow
from ..core.source import Source, Target
from ..core.state import State, Store
from ..routes.choose import settle
from ..routes.gather import even_rows, gather
from ..transports.process_group import ProcessGroup


def all_reduce(
    tensor: Tensor, compressor: Compressor | Reducer, group: dist.ProcessGroup | None = None, *, op: str = "sum"
) -> Tensor:
    """Makes ``tensor`` the sum over the ranks (or the "mean", by ``op``) of what ``compressor`` sent of each; the same
    bits on all ranks. Bytes per rank: 2 (W-1)/W c for a payload of c bytes, between two ranks c.

    Args:
        tensor: floating-point numbers, of any shape; coded in fp32, whatever its type is.
        compressor: or a reducer that remembers nothing, such as ``TwoPhase(Cast(torch.bfloat16))``, or ``Exact()``.
        group: None: all ranks.

    Raises:
        TypeError: no tensor, no compressor, no group.
        ValueError: another ``op``, or a reducer that remembers.
        PeerError, TransportError: a peer is at another call, or gone.
    """
    call = f"all_reduce({_told(tensor)}, {compressor!r})"
    caller = _caller(call, tensor, group)
    reducer = stateless(call, compressor, caller.transport.world)
    scale = _scale(call, op, caller.transport.world)
    shape = tuple(tensor.shape) if tensor.dim() > 1 else (1, tensor.numel())
    layout = Layout.of([("tensor", shape)])
    with torch.no_grad():
        flat = caller.wide(tensor)
        bucket = Bucket(flat, layout)
        caller.run(_averaging(caller, reducer, Source(bucket), Target(bucket, scale)))
        return _back(tensor, flat)


def reduce_scatter(
    output: Tensor,
    input: Tensor,
    compressor: Compressor | Reducer,
    group: dist.ProcessGroup | None = None,
    *,
    op: str = "sum",
) -> Tensor:
    """Makes ``output`` this rank's part of the sum over the ranks (or the "mean", by ``op``) of what ``compressor``
    sent of ``input``, which is one ``output`` per rank, end to end. Every part travels once, to who wants it: bytes per
    rank (W-1)/W c for a payload of c bytes. Sums are in fp32, also of ``Cast(torch.bfloat16)``.

    Raises:
        TypeError, ValueError, PeerError, TransportError: see ``all_reduce``; ValueError too where sizes do not fit.
    """
    call = f"reduce_scatter({_told(output)}, {_told(input)}, {compressor!r})"
    caller = _caller(call, input, group)
    world, rank = caller.transport.world, caller.transport.rank
    _fit(call, output, input, world)
    reducer, scale = stateless(call, compressor, world, rows=True), _scale(call, op, world)
    layout = even_rows(tuple(output.shape), world)
    with torch.no_grad():
        flat, row = caller.wide(input), caller.ctx.buffer("row", output.numel(), torch.float32)
        target = Target(Bucket(row, layout.row(world, rank)), scale, row=True)
        caller.run(_averaging(caller, reducer, Source(Bucket(flat, layout)), target))
        return _back(output, row)


def all_gather(output: Tensor, input: Tensor, compressor: Compressor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Makes ``output`` what ``compressor`` sent of every rank's ``input``, end to end in rank order; the same bits on
    all ranks, this rank's own part too. Bytes per rank: (W-1) c for a payload of c bytes.

    Raises:
        TypeError, ValueError, PeerError, TransportError: see ``reduce_scatter``.
    """
    call = f"all_gather({_told(output)}, {_told(input)}, {compressor!r})"
    if not isinstance(compressor, Compressor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"{call}: nothing is averaged here. Give a compressor, such as QSGD(bits=8).")
    caller = _caller(call, input, group)
    world, rank = caller.transport.world, caller.transport.rank
    _fit(call, input, output, world)
    layout = even_rows(tuple(input.shape), world)
    with torch.no_grad():
        own = caller.ctx.buffer("own", input.numel(), torch.float32).copy_(input.reshape(-1))
        everything = caller.ctx.buffer("all", layout.numel, torch.float32)
        row = Bucket(own, layout.row(world, rank))
        packing = pack_rows(compressor, layout, layout, world)
        caller.run(gather(compressor, packing, row, Target(Bucket(everything, layout)), caller.ctx))
        return _back(output, everything)


class _Caller:
    """One call. What is kept of a group from call to call, ``ctx``, holds no reference to it: a group's threads end
    when nobody has it any more."""

    def __init__(self, group: dist.ProcessGroup, device: torch.device, ctx: Context) -> None:
        self.transport = ProcessGroup(None if ctx.world == 1 else group, device)
        self.ctx = ctx

    def wide(self, tensor: Tensor) -> Tensor:
        """Its elements, in fp32."""
        return self.ctx.buffer("flat", tensor.numel(), torch.float32).copy_(tensor.detach().reshape(-1))

    def run(self, exchange: Generator[Collective, Any, Any]) -> None:
        """Runs the call to its end."""
        self.ctx.step += 1
        self.ctx.bad, self.ctx.faults = False, []
        try:
            drive(exchange, self.transport)
        finally:
            self.transport.close()
        raise_deferred(self.ctx.faults)


_known: WeakKeyDictionary[dist.ProcessGroup, dict[torch.device, Context]] = WeakKeyDictionary()


def _caller(call: str, tensor: object, group: object) -> _Caller:
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        raise TypeError(f"{call}: give a tensor of floating-point numbers.")
    group = dist.group.WORLD if group is None else group
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(f"{call}: group={group!r} is no process group that this rank is in; None is all ranks.")
    known, device = _known.setdefault(group, {}), tensor.device
    if device not in known:
        rank, world = dist.get_rank(group), dist.get_world_size(group)
        known[device] = Context(rank, world, arena=Arena(device), tag="call ")
    return _Caller(group, device, known[device])


def _averaging(caller: _Caller, reducer: Reducer, source: Source, target: Target) -> Flow:
    t, layout = caller.transport, source.layout
    store = Store(reducer, t.rank, t.world, t.device, rows=target.row)
    return flow(reducer, source, State(store, layout), caller.ctx, target)


def stateless(call: str, given: object, world: int, rows: bool = False) -> Reducer:
    """What is given, with its route, if it needs no memory.

    Raises:
        TypeError, ValueError: it is no reducer, or needs some.
    """
    if not isinstance(given, Compressor | Reducer):
        raise TypeError(f"{call}: {given!r} is no compressor. Give one, such as cc.Cast(torch.bfloat16).")
    settled = settle(given, world, rows=rows)
    if settled.traits.stateful or settled.traits.named:
        raise ValueError(
            f"{call}: {given!r} remembers from step to step, or goes by parameters' names, and a call has neither. "
            f"Give the compressor alone, or attach it to a model."
        )
    return settled


def _scale(call: str, op: object, world: int) -> float:
    if op not in ("sum", "mean"):
        raise ValueError(f'{call}: op={op!r}: give "sum" or "mean". Other operations are torch.distributed\'s.')
    return float(world) if op == "sum" else 1.0


def _fit(call: str, part: Tensor, whole: Tensor, world: int) -> None:
    if not isinstance(part, Tensor) or not isinstance(whole, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"{call}: give two tensors.")
    if whole.numel() != world * part.numel() or part.device != whole.device or not part.is_floating_point():
        raise ValueError(
            f"{call}: among {world} ranks the larger tensor has {world} times the elements of the smaller, on the same "
            f"device, in a floating-point type."
        )


def _back(to: Tensor, flat: Tensor) -> Tensor:
    to.copy_(flat.view(to.shape))
    return to


def _told(tensor: object) -> str:
    return f"{list(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
