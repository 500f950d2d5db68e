"""Interleave: a row's blocks dealt out like cards, so that every share gets its part of every region.

Row of n elements in nb = ceil(n/grain) blocks: block i goes to share ``(i + first) % ways``, first = -nb modulo ways,
and the shares lie one after the other, each with its blocks in order. So the last block, which may be short, ends the
last share. Every share has nb // ways blocks, the last nb % ways of them one more.
Rows of the table, int64 ``[rows, 4]``: first natural element, first dealt element, elements, ways (1: as it is); a
negative start: the row is absent. Forward: ``dealt <- natural``. Inverse: ``natural (+)= scale * dealt``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .rows import ceil_div


def order(numel: int, grain: int, ways: int, device: torch.device | None = None) -> Tensor:
    """The natural index of every dealt element."""
    blocks = ceil_div(numel, grain)
    i = torch.arange(blocks, device=device)
    share = (i - blocks) % ways  # -blocks modulo ways is the share of block 0
    dealt = torch.sort(share, stable=True).indices
    elements = dealt[:, None] * grain + torch.arange(grain, device=device)
    flat = elements.reshape(-1)
    return flat[flat < numel]


def bounds(numel: int, grain: int, ways: int) -> list[int]:
    """Where each share begins among the dealt elements, and where the last one ends."""
    blocks = ceil_div(numel, grain)
    each, more = divmod(blocks, ways)
    found = [0]
    for share in range(ways):
        found.append(min(numel, found[-1] + (each + (share >= ways - more)) * grain))
    return found


def interleave(
    source: Tensor, table: Tensor, target: Tensor, grain: int, scale: float, accumulate: bool, inverse: bool
) -> None:
    """``target (+)= scale * source``, dealt out or, ``inverse``, in natural order again."""
    for r, (natural, dealt, numel, ways) in enumerate(table.tolist()):
        start, to = (dealt, natural) if inverse else (natural, dealt)
        if start < 0 or to < 0:
            continue
        if not (numel >= 0 and ways > 0 and start + numel <= source.numel() and to + numel <= target.numel()):
            raise ValueError(
                f"compcomm.interleave: table row {r} {(natural, dealt, numel, ways)} lies outside {source.numel()} or "
                f"{target.numel()} elements"
            )
        part, into = source[start : start + numel], target[to : to + numel]
        index = order(numel, grain, ways, source.device)
        moved = torch.empty_like(part)
        if inverse:
            moved[index] = part
        else:
            moved = part[index]
        moved = moved if scale == 1.0 and not accumulate else moved * scale
        into.copy_(into + moved if accumulate else moved)
