"""Which tiles a Hadamard transform has: a row is cut into parts of one size each, and what is left after them.

    block <= 4096            whole tiles of 4096, then the ends
    block <= 2^15            the parts of each size from ``block`` down to 4096, a block in registers, then the ends
    larger                   tiles of 4096, then columns of up to 256 such tiles through memory, then the ends

so an op is two launches, up to five, or three.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from triton import next_power_of_2

from . import work
from .work import Work

TILE = 4096
LARGEST = 1 << 15
"""Elements of the largest block that one program holds, where a multiprocessor has the shared memory for it."""
HIGH = 8192
"""Elements of a program that goes over columns."""


class Part(NamedTuple):
    """Tiles of 2^``log`` elements, butterflies of the lowest ``stages`` bits, and the warps that hold a tile."""

    work: Work
    log: int
    stages: int

    @property
    def far(self) -> int:
        """Warps: 1024 elements each."""
        return 1 << (self.log - 10)


def largest(device: torch.device) -> int:
    """Elements of the largest block that one program holds: consumer GPUs have less than 128 KiB for a program."""
    if device.type == "cuda" and torch.cuda.get_device_properties(device).shared_memory_per_block_optin < 4 * LARGEST:
        return LARGEST // 2
    return LARGEST


class Plan(NamedTuple):
    """The launches of an op: ``parts``, ``columns`` (``rows`` tiles high, ``wide`` elements wide), and ``ends``."""

    parts: tuple[Part, ...]
    ends: Work
    columns: Work | None
    rows: int
    wide: int
    bases: Tensor


def plan(table: Tensor, block: int, device: torch.device, decoding: bool) -> Plan:
    """The launches for a table, made once."""
    return work.kept(table, ("hadamard", block, device, decoding), lambda: _made(table, block, device, decoding))


def _made(table: Tensor, block: int, device: torch.device, decoding: bool) -> Plan:
    lines = table.cpu().numpy()
    numel = lines[:, 2].copy()
    if decoding:
        numel[lines[:, 0] == -1] = 0

    def listed(first: np.ndarray, count: np.ndarray) -> Work:
        """``count`` tiles of each row from number ``first`` on."""
        rows = np.repeat(np.arange(len(numel)), count)
        inside = np.arange(len(rows)) - (np.cumsum(count) - count)[rows] + first[rows]
        if len(rows) >= 2**31 or (len(inside) and inside.max() >= 2**31):
            raise ValueError(f"compcomm: {len(rows)} tiles of a Hadamard transform; a launch has fewer than 2^31")
        made = torch.from_numpy(np.stack((rows, inside), 1).astype(np.int32)).contiguous()
        return Work(work.on(table, device), made.to(device, non_blocking=True), len(rows))

    log, least = block.bit_length() - 1, TILE.bit_length() - 1
    tiles = numel >> least
    none = np.zeros_like(numel)
    ends = listed(tiles, (numel % TILE > 0).astype(np.int64))
    bases = torch.from_numpy(np.cumsum(tiles) - tiles).to(device, non_blocking=True)
    if block <= TILE or block > largest(device):
        parts = (Part(listed(none, tiles), least, min(log, least)),)
    else:
        whole = Part(listed(none, numel >> log), log, log)
        rest = [
            Part(listed(numel >> (size + 1) << 1, numel >> size & 1), size, size)
            for size in range(log - 1, least - 1, -1)
        ]
        parts = (whole, *rest)
    parts = tuple(part for part in parts if part.work.programs)
    high = min(block >> least, next_power_of_2(int(tiles.max(initial=1)))) if block > largest(device) else 1
    columns, wide = None, max(32, HIGH // high)
    if high > 1:
        columns = listed(none, -(-tiles // high) * (TILE // wide))
    return Plan(parts, ends, columns, high, wide, bases)
