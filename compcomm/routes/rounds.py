"""Payloads to all ranks, or to their owners: messages of known length in one round, others with the header ahead.

Where a compressor's sections vary in length (``Compressor.variable``), a rank cannot know what its peers will send. Its
message then travels in two collectives: the header, which has the message's length, and the body, squeezed to what is
used. All lengths are checked against the capacity before memory is touched; a dry run lists the capacity.

Between header and body nothing may fail on one rank alone: its peers wait for a body of the length that they were told,
and what a failed rank sends is as long as the capacity. So all memory is fetched before the first collective.
"""

from __future__ import annotations

from collections.abc import Generator
from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor

from ..core.collectives import AllGather, AllToAll, Collective
from ..core.compressor import Payload, ops
from ..core.context import Context
from ..core.header import (
    Flags,
    read_headers,
    write_header,
    write_headers,
)
from ..core.packing import Packing

Exchange = Generator[Collective, bool, tuple[Tensor, Flags]]
"""Ends with the messages of all ranks, ``[W, stride]``, and what their headers say together."""


def to_all(payload: Payload, ctx: Context, tag: str) -> Exchange:
    """Every rank's message (``payload.message`` of its packing, or its only one) to every rank."""
    packing, world, wire = payload.packing, ctx.world, payload.wire
    own = payload.message or 0
    lengths = packing.splits if payload.message is not None else packing.splits * world
    width = wire.numel()
    gathered = ctx.buffer(tag, width * world)
    wires = gathered.view(world, width)
    if not payload.compressor.variable:
        write_header(wire[: packing.splits[own]], payload.status, ctx)
        yield AllGather(wire, gathered)
        return wires, read_headers(wires, packing.count, ctx, lengths)
    head = packing.header
    messages = tuple(range(world)) if payload.message is not None else (0,) * world
    body, heads = ctx.buffer(tag + " body", width - head), ctx.buffer(tag + " heads", head * world)
    bodies = ctx.buffer(tag + " bodies", (width - head) * world)
    _arrange(packing, messages, width)
    (used,) = _compact(packing, (own,), (0,), payload, body, ctx.buffer(tag + " sizes", 1, torch.int64))
    write_header(wire[:head], payload.status, ctx, length=head + used)
    yield AllGather(wire[:head], heads)
    flags = read_headers(heads.view(world, head), packing.count, ctx, lengths, shorter=True)
    wide = max(flags.lengths) - head
    yield AllGather(body[:wide], bodies[: wide * world], capacity=bodies.numel())
    places = [(rank * wide, length - head) for rank, length in enumerate(flags.lengths)]
    _scatter(packing, messages, width, bodies, places, gathered)
    return wires, flags


def to_owners(payload: Payload, ctx: Context, tag: str) -> Exchange:
    """Message r of every rank's payload to rank r."""
    packing, world, wire = payload.packing, ctx.world, payload.wire
    mine = packing.splits[ctx.rank]
    received = ctx.buffer(tag, mine * world)
    wires = received.view(world, mine)
    if not payload.compressor.variable:
        write_headers(wire.split(packing.splits), payload.status, ctx)
        yield AllToAll(wire, received, packing.splits, (mine,) * world)
        return wires, read_headers(wires, packing.count, ctx, (mine,) * world)
    head, starts = packing.header, tuple(accumulate((0, *packing.splits[:-1])))
    room = packing.nbytes - head * world
    body, bodies = ctx.buffer(tag + " body", room), ctx.buffer(tag + " bodies", (mine - head) * world)
    mixed, heads = ctx.buffer(tag + " heads out", head * world), ctx.buffer(tag + " heads", head * world)
    _arrange(packing, (ctx.rank,) * world, mine)
    sizes = ctx.buffer(tag + " sizes", world, torch.int64)
    used = _compact(packing, tuple(range(world)), starts, payload, body, sizes)
    write_headers(mixed.split(head), payload.status, ctx, lengths=[head + n for n in used])
    yield AllToAll(mixed, heads, (head,) * world, (head,) * world)
    flags = read_headers(heads.view(world, head), packing.count, ctx, (mine,) * world, shorter=True)
    lengths = tuple(length - head for length in flags.lengths)
    yield AllToAll(body[: sum(used)], bodies[: sum(lengths)], used, lengths, capacity=room)
    places = list(zip(accumulate((0, *lengths[:-1])), lengths, strict=True))
    _scatter(packing, (ctx.rank,) * world, mine, bodies, places, received)
    return wires, flags


@lru_cache(maxsize=4096)
def _spans(packing: Packing, messages: tuple[int, ...], starts: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The table of coded rows of these messages, each beginning at its byte, and a line per message: first byte of its
    body, end of its exact part, its own end, number of its rows."""
    tables: list[Tensor] = []
    lines: list[tuple[int, int, int, int]] = []
    for message, start in zip(messages, starts, strict=True):
        table = packing.table(True, None, message=message).clone()
        table[:, 3] += start
        tables.append(table)
        end = start + packing.splits[message]
        lines.append((start + packing.header, int(table[0, 3]) if len(table) else end, end, len(table)))
    return torch.cat(tables), torch.tensor(lines, dtype=torch.int64)


def _arrange(packing: Packing, messages: tuple[int, ...], stride: int) -> tuple[Tensor, Tensor]:
    """``_spans`` of messages that lie ``stride`` bytes apart."""
    return _spans(packing, messages, tuple(stride * i for i in range(len(messages))))


def _compact(
    packing: Packing, messages: tuple[int, ...], starts: tuple[int, ...], payload: Payload, body: Tensor, sizes: Tensor
) -> tuple[int, ...]:
    """The bodies of ``messages``, back to back in ``body``; returns their lengths in bytes, by way of ``sizes``."""
    if body.is_meta:
        return tuple(packing.splits[m] - packing.header for m in messages)
    ops.compact(payload.wire, *_spans(packing, messages, starts), body, sizes)
    return tuple(sizes.tolist())


def _scatter(
    packing: Packing, messages: tuple[int, ...], stride: int, bodies: Tensor, places: list[tuple[int, int]], to: Tensor
) -> None:
    if not to.is_meta:  # where bodies begin is heard anew in every step, so this small table is made anew
        ops.scatter(bodies, torch.tensor(places, dtype=torch.int64), *_arrange(packing, messages, stride), to)
