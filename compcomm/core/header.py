"""The header in front of every message: who sent it, for which step and bucket, how long it is, what it met.

====== ===== ==========================================================================
offset bytes header field
====== ===== ==========================================================================
0      4     magic ``CCM1``
4      1     flags: bit 0 non-finite gradient met, bit 1 the sender failed
5      1     zero
6      2     rank of the sender
8      4     step (modulo 2**32)
12     4     number of the bucket
16     4     length of the message in bytes, as far as it is sent
20     n/8   one bit per segment of the bucket: its gradient is all zero on the sender
====== ===== ==========================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..ops.reference.header import (
    FAILED,
    FAILURE,
    FIELDS,
    MAGIC,
    NONFINITE,
)
from .context import Context
from .deferred import DeferredBool, DeferredError, deferred

ops = torch.ops.compcomm


class PeerError(RuntimeError):
    """A peer's message says that the peer failed, or belongs to another step, bucket or program."""


class Flags(NamedTuple):
    """What the headers of all ranks say together: equal on all ranks."""

    bad: DeferredBool
    skip: Tensor  # uint8 per segment: its gradient is zero on every rank
    zero: bool  # whether any is; where the device alone knows, True
    lengths: tuple[int, ...] = ()  # of the ranks' messages, in bytes

    @staticmethod
    def clean(count: int, lengths: tuple[int, ...] = ()) -> Flags:
        return Flags(False, torch.zeros(count, dtype=torch.uint8), False, lengths)


def write_header(
    message: Tensor, status: Tensor, ctx: Context, *, failed: bool = False, length: int | None = None
) -> None:
    """Fills in the header of a message from the kernels' ``status`` (uint8: non-finite, then nonzero per segment).

    ``length``: what the header calls the message's length, where ``message`` is another part of it.
    """
    write_headers((message,), status, ctx, failed=failed, lengths=None if length is None else (length,))


def write_headers(
    messages: Sequence[Tensor],
    status: Tensor,
    ctx: Context,
    *,
    failed: bool = False,
    lengths: Sequence[int] | None = None,
) -> None:
    """The same for one message per owner: headers that differ in the length alone."""
    if not messages or messages[0].is_meta:
        return
    if deferred(messages[0]) and status.device == messages[0].device:
        at = tuple(m.data_ptr() - messages[0].data_ptr() for m in messages)
        says = tuple(lengths or (m.numel() for m in messages))
        places = _places(at, says)
        extent = max(at) + -(-(FIELDS + -(-(status.numel() - 1) // 8)) // 4) * 4
        wire = messages[0].as_strided((extent,), (1,))
        ops.header_write(wire, status, places, FAILED if failed else 0, ctx.rank, ctx.step, ctx.bucket)
        return
    bits = status.cpu().numpy()
    flags = (NONFINITE if bits[0] else 0) | (FAILED if failed else 0)
    size = FIELDS + -(-(len(bits) - 1) // 8)
    head = np.zeros(-(-size // 4) * 4, np.uint8)
    fields = head[:FIELDS].view("<u4")
    fields[:] = MAGIC, flags | ctx.rank << 16, ctx.step & 0xFFFFFFFF, ctx.bucket & 0xFFFFFFFF, 0
    head[FIELDS:size] = np.packbits(bits[1:] == 0, bitorder="little")
    for i, message in enumerate(messages):
        fields[4] = message.numel() if lengths is None else lengths[i]
        message[: len(head)].copy_(torch.from_numpy(head))


def read_headers(
    messages: Tensor, count: int, ctx: Context, lengths: tuple[int, ...], *, shorter: bool = False
) -> Flags:
    """Checks the headers of all ranks' messages (``[W, stride]``) and combines what they say.

    ``shorter``: ``lengths`` are capacities, and a message may have any length between its header and that.

    Raises:
        PeerError: naming the rank that failed or that is at another step, bucket or configuration.
    """
    if messages.is_meta:
        return Flags.clean(count, lengths)
    if deferred(messages) and not shorter:
        return _read_later(messages, count, ctx, lengths)
    size = FIELDS + -(-count // 8)
    heads = messages[:, :size].cpu().numpy()
    fields = heads[:, :FIELDS].copy().view("<u4")
    bad, found = False, fields[:, 4].tolist()
    for rank, (magic, flags, step, bucket, length) in enumerate(fields.tolist()):
        due = length if shorter and messages.shape[1] <= length <= lengths[rank] else lengths[rank]
        here = (MAGIC, rank, ctx.step & 0xFFFFFFFF, ctx.bucket & 0xFFFFFFFF, due)
        if flags & FAILED and (magic, flags >> 16) == (MAGIC, rank):
            raise PeerError(f"rank {rank} failed in step {step}, bucket {bucket}; its own log has the error.")
        if (magic, flags >> 16, step, bucket, length) != here or flags & 0xFFFF & ~(NONFINITE | FAILED):
            raise PeerError(
                f"rank {rank} sent (magic, rank, step, bucket, bytes) = {(magic, flags >> 16, step, bucket, length)} "
                f"where {here} was due: the ranks are out of step, or configured differently. Make the same calls with "
                f"the same arguments on every rank, and restart."
            )
        bad |= bool(flags & NONFINITE)
    zero = np.bitwise_and.reduce(heads[:, FIELDS:], axis=0)
    if not zero.any():
        return Flags(bad, _zeros(count, messages.device), False, tuple(found))
    skip = torch.from_numpy(np.unpackbits(zero, count=count, bitorder="little")).to(messages.device)
    return Flags(bad, skip, bool(skip.any()), tuple(found))


def _read_later(messages: Tensor, count: int, ctx: Context, lengths: tuple[int, ...]) -> Flags:
    """The same on the device: marks for its kernels, and a fault that the host looks at when the step is over."""
    device, step, bucket = messages.device, ctx.step, ctx.bucket
    outcome = torch.empty(1 + count, dtype=torch.uint8, device=device)
    word = torch.empty(1, dtype=torch.int64, device=device)
    ops.header_read(messages, outcome, word, _lengths(lengths), step, bucket)

    def explain(fault: int) -> Exception:
        rank, kind = divmod(fault, 4)
        if kind == FAILURE:
            return PeerError(f"rank {rank} failed in step {step}, bucket {bucket}; its own log has the error.")
        return PeerError(
            f"rank {rank} sent, for step {step} and bucket {bucket}, a message of another program, step, bucket or "
            f"length: the ranks are out of step, or configured differently. Make the same calls with the same "
            f"arguments on every rank, and restart."
        )

    ctx.faults.append(DeferredError(word, explain))
    return Flags(outcome[:1], outcome[1:], True)


@lru_cache(maxsize=4096)
def _places(first: tuple[int, ...], second: tuple[int, ...]) -> Tensor:
    """Numbers as a constant table for kernels, a line for each message."""
    return torch.tensor([first, second], dtype=torch.int64).t().contiguous()


@lru_cache(maxsize=4096)
def _lengths(lengths: tuple[int, ...]) -> Tensor:
    return torch.tensor(lengths, dtype=torch.int64)


@lru_cache(maxsize=4096)
def _zeros(count: int, device: torch.device) -> Tensor:
    return torch.zeros(count, dtype=torch.uint8, device=device)
