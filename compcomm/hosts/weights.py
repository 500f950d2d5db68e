"""The weights that ``fully_shard`` gathers, in fewer bytes: all ranks compute with the same decoded ones.

Before a forward and a backward pass FSDP gathers a unit's shards from all ranks. Here each rank codes its own shard,
the codes are gathered, and every rank decodes all of them, its own too: all compute with the same bits. The shards that
the optimizer steps stay as they are. Forward and backward passes gather separately, so coding must give the same bits
both times: nearest rounding alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core.collectives import Collective
from ..core.compressor import Compressor
from ..core.context import Arena, Context
from ..core.deferred import Asked
from ..core.drive import drive
from ..core.layout import Bucket, Layout
from ..core.packing import pack_rows
from ..core.random import Rng
from ..core.source import Target
from ..core.transport import Transport
from ..routes.gather import check_whole, gather
from ..transports import compat
from .fsdp_internals import Unit


class CompressedAllGather:
    """FSDP's all-gather of one unit, over a transport of its own that all units share.

    Bytes per rank: (W-1) c for a payload of c bytes, where FSDP sends (W-1) times the shard. Parameters that the
    compressor leaves exact (1-D ones) travel in fp32. A rank whose weights are not finite makes all weights NaN.
    All-gathers among other ranks (``reshard_after_forward`` an integer) are passed on as they are.
    """

    def __init__(self, unit: Unit, compressor: Compressor, transport: Transport, arena: Arena, seed: int) -> None:
        self._unit, self._compressor, self._transport = unit, compressor, transport
        self._ctx = Context(
            transport.rank, transport.world, 0, unit.number, seed, watch=False, alone=True, arena=arena, tag="weights "
        )
        self._asked = Asked()
        self.sent = 0
        """Bytes so far."""
        self.dense = 0
        """What they would have been in fp32."""

    @property
    def cost(self) -> tuple[int, int]:
        """Bytes that a rank sends in one gather, and what it would send as FSDP does, in fp32."""
        world = self._transport.world
        layout = self._unit.layout(world, everything=True)
        coded = max(pack_rows(self._compressor, layout, layout, world).splits)
        return (world - 1) * coded, (world - 1) * 4 * (layout.numel // world)

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Room for what is gathered."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, async_op: bool = False) -> Any:
        """Makes ``output_tensor`` all ranks' shards, decoded; this rank's, ``input_tensor``, is a copy."""
        world = self._transport.world
        if group.size() != world:
            work = compat.all_gather(output_tensor, input_tensor, group)
            if async_op:
                return work
            work.wait()
            return None
        layout = self._unit.layout(world, everything=True)
        if layout.numel != output_tensor.numel() or not output_tensor.is_floating_point():
            raise RuntimeError(
                f"attach(weights={self._compressor!r}): unit {self._unit.number} ({self._unit.names[0]}, ...) gathers "
                f"{output_tensor.numel()} elements of {output_tensor.dtype} where its parameters have {layout.numel}: "
                f"parameters of several types, or with an extension of their own, cannot be coded. Leave weights= out."
            )
        self._gather(output_tensor, input_tensor, layout)
        return None

    def _gather(self, output: Tensor, own: Tensor, layout: Layout) -> None:
        c, ctx = self._compressor, self._ctx
        if own.is_cuda:  # an explicit unshard() runs on another stream than FSDP's own gathers, and nothing orders them
            ctx.tag = f"weights on {torch.cuda.current_stream(own.device).cuda_stream} "
        x, out = own, output
        if own.dtype != torch.float32:
            x = ctx.buffer("row", own.numel(), torch.float32).copy_(own)
            out = ctx.buffer("all", layout.numel, torch.float32)
        self._asked.look()
        packing, row = pack_rows(c, layout, layout, ctx.world), layout.row(ctx.world, ctx.rank)
        ctx.bad = False
        exchange = gather(c, packing, Bucket(x, row), Target(Bucket(out, layout)), ctx)
        drive(exchange, self._transport, starting=self._count)
        self.dense += (ctx.world - 1) * 4 * (layout.numel // ctx.world)
        self._asked.ask(ctx.faults)
        ctx.faults = []
        if out is not output:
            output.copy_(out)

    def _count(self, op: Collective) -> None:
        self.sent += op.sent_bytes(self._transport.world, self._transport.rank)


def check_weights(compressor: object) -> Compressor:
    """What may code weights.

    Raises:
        TypeError: no compressor.
        ValueError: it draws random numbers, or sends a part of the elements alone.
    """
    call = f"attach(weights={compressor!r})"
    if not isinstance(compressor, Compressor):
        raise TypeError(
            f"{call}: weights are gathered, not averaged: give a compressor, such as QSGD(bits=8, rounding='nearest')."
        )
    check_whole(call, compressor, "a model needs all. Use QSGD(bits=8, rounding='nearest').")
    layout = Layout.of([("sample", (4, 1024))])
    drawn = torch.linspace(-1.0, 1.0, layout.numel, dtype=torch.float32)
    one, other = (compressor.encode_(Bucket(drawn.clone(), layout), Rng(0, 0, rank)).wire for rank in (0, 1))
    if not torch.equal(one, other):
        raise ValueError(
            f"{call}: it rounds at random, and the forward and the backward pass gather weights separately: gradients "
            f"would be those of other weights than the loss. Use rounding='nearest'."
        )
    return compressor
