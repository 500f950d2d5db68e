"""Top-k, the encoder: selection by radix, then one pass that knows its places. Kernels: ``csrc/cuda/topk.cu``.

The hint is written and not looked at: the sample that the guess comes from costs less than a wrong hint would.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import work
from ..reference.topk import check_k, section
from ..scratch import scratch
from .dense import ENCODE
from .library import LONG, POINTER, Function, kernel, number, typed

_encode = Function("cc_cuda_topk_encode", *ENCODE, POINTER, LONG, POINTER, LONG, POINTER, POINTER, LONG)


class Plan(NamedTuple):
    """What follows from the table. ``lists``: int64 [rows, 2], first candidate of a row and room for how many."""

    tiles: work.Work
    stretches: work.Work
    lists: Tensor
    candidates: int
    nbytes: int


@cache
def _sizes() -> tuple[int, int]:
    return number("cc_cuda_topk_tile"), number("cc_cuda_topk_stretch")


def plan(table: Tensor, device: torch.device) -> Plan:
    """Lists have room for three times k and some more, so that few guesses miss; where k is large there is none."""

    def make() -> Plan:
        lines = table.cpu().numpy()
        numel, k = lines[:, 2], lines[:, 6]
        room = np.where((k > 0) & (k <= numel // 8), np.minimum(numel, 3 * k + 2048), 0)
        ends = np.cumsum(room)
        lists = torch.from_numpy(np.stack((ends - room, room), 1).astype(np.int64)).contiguous()
        tile, stretch = _sizes()
        tiles, candidates = work.tiles(table, tile, device), int(room.sum())
        nbytes = number("cc_cuda_topk_scratch", len(lines), tiles.programs, candidates)
        stretches = work.tiles(table, stretch, device)
        return Plan(tiles, stretches, lists.to(device, non_blocking=True), candidates, nbytes)

    return work.kept(table, ("cuda top-k", device), make)


@kernel("topk_encode")
def topk_encode(x, add, wire, table, status, decay, add_scale, hint):
    work.kept(table, "topk_encode k", lambda: check_k("topk_encode", table, decoding=False))
    work.check_encode("topk_encode", x, add, wire, table, status, section)
    p = plan(table, wire.device)
    memory = scratch("cuda top-k", p.nbytes, torch.uint8, wire.device)
    _encode(
        wire, *typed(x), *typed(add), wire.data_ptr(), p.tiles.table.data_ptr(), p.tiles.tiles.data_ptr(),
        p.tiles.programs, status.data_ptr(), decay, add_scale, None if hint is None else hint.data_ptr(),
        table.shape[0], p.stretches.tiles.data_ptr(), p.stretches.programs, p.lists.data_ptr(), memory.data_ptr(),
        p.candidates,
    )  # fmt: skip
