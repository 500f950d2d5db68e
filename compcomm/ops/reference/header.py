"""Message headers on the device: written from a kernel's status, read into marks. ``core/packing.py`` has the layout.

``places`` is int64 ``[messages, 2]``: the first byte of each header in ``wire``, and what it calls the message's
length. ``outcome`` is uint8 ``[1 + segments]``: whether a rank met a non-finite value, then which segments' gradients
are zero on every rank. ``fault`` is int64 ``[1]``: 0, or ``4 * rank + kind`` of the first rank that says it failed
(kind 1) or whose header is another than is due (kind 2); then ``outcome[0]`` is 1 too, so that nothing of the step is
taken in.

A header that ranks sum is fp32 ``[2 + segments]``: a number of step and bucket, ``due`` over all ranks; how many met a
non-finite value, NaN where one failed; and for each segment how many have a gradient. Its ``fault`` is the kind alone.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

MAGIC = int.from_bytes(b"CCM1", "little")
NONFINITE, FAILED = 1, 2
FIELDS = 20
FAILURE, MISMATCH = 1, 2
_WORD = 0xFFFFFFFF


def size(count: int) -> int:
    """Bytes of a header that speaks of ``count`` segments, padding left out."""
    return FIELDS + -(-count // 8)


def header_write(wire: Tensor, status: Tensor, places: Tensor, flags: int, rank: int, step: int, bucket: int) -> None:
    """Headers that differ in their length alone. ``flags`` go beside what ``status[0]`` says."""
    bits = status.cpu().numpy()
    flags |= NONFINITE if bits[0] else 0
    head = np.zeros(-(-size(len(bits) - 1) // 4) * 4, np.uint8)
    fields = head[:FIELDS].view("<u4")
    fields[:] = MAGIC, flags | rank << 16, step & _WORD, bucket & _WORD, 0
    head[FIELDS : size(len(bits) - 1)] = np.packbits(bits[1:] == 0, bitorder="little")
    for at, length in places.tolist():
        fields[4] = length
        wire[at : at + len(head)].copy_(torch.from_numpy(head))


def header_read(wires: Tensor, outcome: Tensor, fault: Tensor, lengths: Tensor, step: int, bucket: int) -> None:
    """What the headers of all ranks' messages say together."""
    count = outcome.numel() - 1
    heads = wires[:, : size(count)].contiguous().cpu().numpy()
    fields = heads[:, :FIELDS].copy().view("<u4").tolist()
    bad, found = 0, 0
    for rank, ((magic, flags, at, number, length), due) in enumerate(zip(fields, lengths.tolist(), strict=True)):
        ours = (magic, flags >> 16) == (MAGIC, rank)
        right = ours and (at, number, length) == (step & _WORD, bucket & _WORD, due)
        right = right and not flags & 0xFFFF & ~(NONFINITE | FAILED)
        kind = FAILURE if ours and flags & FAILED else 0 if right else MISMATCH
        found = found or (4 * rank + kind if kind else 0)
        bad |= flags & NONFINITE
    zero = np.bitwise_and.reduce(heads[:, FIELDS:], axis=0)
    said = np.concatenate(([bad or found != 0], np.unpackbits(zero, count=count, bitorder="little")))
    outcome.copy_(torch.from_numpy(said.astype(np.uint8)))
    fault.fill_(found)


def sums_read(sums: Tensor, outcome: Tensor, fault: Tensor, due: float) -> None:
    """What a summed header says."""
    (at, met), zero = sums[:2].tolist(), sums[2:] == 0
    kind = FAILURE if met != met else MISMATCH if at != due else 0
    outcome[:1] = int(met > 0 or kind != 0)
    outcome[1:] = zero
    fault.fill_(kind)
